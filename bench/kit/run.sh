#!/bin/sh
# The report on one GPU, without a network: ./run.sh [FOLDER] [options of bench/gpu_report.py]
# FOLDER (default: report, here) gets gpu-report.md, gpu-report.h5 and pictures. PYTHON names the interpreter to use.
# ./run.sh --help prints README.txt.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
for word; do
	case "$word" in -h | --help) exec cat "$here/README.txt" ;; esac
done
( : >>"$here/lock" ) 2>/dev/null || { echo "$here cannot be written: unpack the kit in a folder of yours" >&2; exit 3; }
exec 9>>"$here/lock" # locked by install.py, until the report has ended
case "${1:-}" in '' | -*) folder=$here/report ;; *) folder=$1 && shift ;; esac
mkdir -p "$folder" || { echo "no folder for the report: ./run.sh /a/folder/of/yours" >&2; exit 3; }
python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
	{ echo "Python 3.11 or later is needed, and $python is not: name another by PYTHON=/path/to/python3.12" >&2; exit 3; }
"$python" "$here/source/bench/kit/install.py" "$here/env" "$here/wheels" 9
unset PYTHONPATH # the environment has the folders of PYTHONPATH, behind its own packages
if [ -z "${CUDA_HOME:-}${CUDA_PATH:-}" ] && [ -d /usr/local/cuda ]; then
	export CUDA_HOME=/usr/local/cuda # for libraries that neither a wheel nor the loader's path has
fi
cache=$here/cache # for libraries that would keep compiled code in the home directory
export CUDA_CACHE_PATH="${CUDA_CACHE_PATH:-$cache/driver}" CUPY_CACHE_DIR="${CUPY_CACHE_DIR:-$cache/cupy}"
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$cache/triton}" MPLCONFIGDIR="${MPLCONFIGDIR:-$cache/matplotlib}"
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$cache/inductor}"
mkdir -p "$cache/driver"
exec "$here/env/bin/python" "$here/source/bench/gpu_report.py" --out "$folder/gpu-report" "$@"
