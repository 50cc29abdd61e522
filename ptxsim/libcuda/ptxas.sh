#!/bin/sh
# A stand-in for ptxas: its output file is its input, which is PTX and not machine code. Triton runs it and gives the
# file to the driver API.
out=
in=
while [ $# -gt 0 ]; do
    case $1 in
    --version | -V)
        echo "ptxsim: a stand-in for ptxas, whose output is its input"
        echo "Cuda compilation tools, release 12.9, V12.9.0"
        exit 0
        ;;
    -o | --output-file)
        out=$2
        [ $# -gt 1 ] && shift
        ;;
    --output-file=*) out=${1#--output-file=} ;;
    *.ptx) in=$1 ;;
    esac
    shift
done
if [ -z "$in" ] || [ -z "$out" ]; then
    echo "ptxsim: the stand-in for ptxas needs one file of PTX, NAME.ptx, and -o FILE" >&2
    exit 2
fi
exec cp -- "$in" "$out"
