"""A ReFrame test: the benchmark on the ranks of a partition, with references from references.yaml.

    reframe -C settings.py --system local:mpi -c aristos_bench.py -r
    reframe ... -S AristosBench.num_tasks=8 -S AristosBench.num_tasks_per_node=4 -S 'AristosBench.options=--tokens 256'

Sanity: the JSON document says that every output was right, on as many ranks as were asked for. Performance: the
figures that references.py takes from it. Needs ReFrame 4.10 or newer, whose references may be in a file.
"""

import os
import sys

import reframe as rfm
import reframe.utility.sanity as sn
import reframe.utility.typecheck as typ
from reframe.core.builtins import run_before, sanity_function, variable

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import references


@rfm.simple_test
class AristosBench(rfm.RunOnlyRegressionTest):
    """Puts and the layer, in a minute: every output is checked by the benchmark itself."""

    descr = "Aristos: one-sided puts and the expert-parallel layer"
    valid_systems = ["*"]
    valid_prog_environs = ["*"]
    python = variable(str, value="python")  # of the environment that Aristos is installed in
    suites = variable(typ.List[str], value=["put", "layer"])
    options = variable(str, value="--preset c --tokens 16,64 --seconds 20")
    num_tasks = 2
    num_cpus_per_task = 1
    time_limit = "10m"
    reference = {"$ref": "references.yaml"}
    keep_files = ["aristos-results.h5"]  # for `aristos compare` and `aristos plot`

    @run_before("run")
    def set_command(self):
        """Set the command, with as many workers a rank as the job gives it processors."""
        self.executable = self.python
        workers = ["--threads", str(self.num_cpus_per_task)]
        self.executable_opts = ["-m", "aristos.bench", *self.suites, "--json", *workers, self.options]
        self.env_vars = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # the workers need the cores

    def document(self):
        """What the job printed on stdout, as references.py reads it."""
        with open(os.path.join(self.stagedir, str(self.stdout))) as file:
            return references.document(file.read())

    @sn.deferrable
    def problems(self):
        """What is wrong with the job's document. References of suites that were not asked for do not count."""
        expected = self.reference.data.get(self.current_partition.fullname, {})
        names = [name for name in expected if name.split("_")[0] in self.suites]
        return references.problems(self.document(), self.num_tasks, self.suites, names)

    @sn.deferrable
    def figure(self, name):
        """The value of a figure of the document."""
        return references.figures(self.document())[name].value

    @sanity_function
    def outputs_are_right(self):
        """The document has every suite, on all ranks, and no wrong row."""
        return sn.assert_eq(self.problems(), [], msg="{0}")

    @run_before("performance")
    def set_figures(self):
        """One performance variable for each figure."""
        for name, figure in references.figures(self.document()).items():
            self.perf_variables[name] = sn.make_performance_function(self.figure(name), figure.unit)
