# Copyright Spack Project Developers and the authors of Aristos. See LICENSE.
#
# SPDX-License-Identifier: BSD-3-Clause

import os

from spack_repo.builtin.build_systems.python import PythonPackage

from spack.package import *


class PyAristos(PythonPackage):
    """Expert-parallel Mixture-of-Experts layers by one-sided puts, written in Python."""

    # Aristos has no public address yet: ARISTOS_SOURCE is the path of a clone.
    git = "file://" + os.environ.get("ARISTOS_SOURCE", "/path/to/aristos")

    license("BSD-3-Clause")

    version("0.2.0", branch="main")

    # A variant for each extra of pyproject.toml, but for GPUs (Spack has no py-numba-cuda) and for
    # transformers (the newest in Spack is 4.57): pip adds those. Any package that provides mpi
    # stands for the extras of MPI libraries.
    variant("plot", default=False, description="Pictures, and results as frames of pandas")
    variant("report", default=False, description="The command aristos report")
    variant("xarray", default=False, description="Results as datasets of xarray")
    variant("plan", default=False, description="The command aristos plan, for many devices")
    variant("explore", default=False, description="The command aristos explore")
    variant("torch", default=False, description="Modules for PyTorch")
    variant("topo", default=False, description="Read Slurm's topology.yaml")
    variant("completion", default=False, description="Completion of the command aristos in shells")

    depends_on("py-setuptools@77:", type="build")

    with default_args(type=("build", "run")):
        depends_on("python@3.11:3.14")
        depends_on("py-numpy@2.0:")
        depends_on("py-numba@0.63:0.68")
        depends_on("py-mpi4py@4.0:")
        depends_on("py-h5py@3.11:")
        depends_on("py-rich@13:")
        depends_on("py-filelock@3.24:")
        depends_on("py-ml-dtypes@0.5:")

    with default_args(type="run"):
        depends_on("mpi")
        depends_on("py-matplotlib@3.8:", when="+plot")
        depends_on("py-pandas@2.0:", when="+plot")
        depends_on("py-plotly@6.3:", when="+report")
        depends_on("py-xarray@2024.10:", when="+xarray")
        depends_on("py-highspy@1.8:", when="+plan")
        depends_on("py-greenlet@3.1:", when="+explore")
        depends_on("py-torch@2.4:", when="+torch")
        depends_on("py-pyyaml@6:", when="+topo")
        depends_on("py-argcomplete@3.5:", when="+completion")
