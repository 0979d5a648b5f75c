from __future__ import annotations

import subprocess
import sys


def test_torch_is_loaded_before_the_openmp_library_of_scanpys_compiled_loops():
    code = (
        "import sys\n"
        "from cmrcnet.datasets.synthetic import synthetic_cohort\n"
        "from cmrcnet.evaluation.protocol.folds import folds\n"
        "from cmrcnet.evaluation.protocol.experiment import FoldPlanner\n"
        "from cmrcnet.config import Config\n"
        "assert 'numba' not in sys.modules\n"
        "cohort = synthetic_cohort(patients=2, spots=12, genes=40, seed=1)\n"
        "config = Config.load('tiny').override({'panel.n_hvg': 10, 'panel.kind': 'hvg', 'evaluation.set_size': 5})\n"
        "FoldPlanner(cohort).plan(config, folds(cohort)[0])\n"
        "loaded = list(sys.modules)\n"
        "print(loaded.index('torch') < loaded.index('numba'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True"], done.stderr
