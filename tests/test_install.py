"""What torch, numpy and scipy alone give, what a missing extra says, and what a quick command must not import."""

import subprocess
import sys

import pytest

from mtl import EXTRAS

BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def python(code: str, *absent: str) -> subprocess.CompletedProcess[str]:
    text = BLOCK.format(absent=set(absent) or "()") + code
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)


def test_methods_solvers_and_gradients_need_no_extra() -> None:
    every = [package for packages in EXTRAS.values() for package in packages]
    done = python(
        "import torch, mtl, mtl.solvers\n"
        "x = torch.ones(2, requires_grad=True)\n"
        "method = mtl.method('fairgrad', n_tasks=2)\n"
        "mtl.backward([x[0] ** 2, x.sum()], shared=[x], method=method)\n"
        "mtl.aggregate('mgda', grads=torch.eye(2), losses=torch.ones(2))\n"
        "mtl.fit\n"
        "try: mtl.problem('digits')\n"
        "except ImportError as said: print(said)\n",
        *every,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (
        "mtl.problem needs pyarrow, which is not installed: pip install '.[data]' in the checkout of mtl\n"
    )


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_the_command_line_says_what_to_install(package: str) -> None:
    done = python("import mtl.__main__; mtl.__main__.main()", package)
    said = f"mtl: the command line needs {package}, which is not installed"
    assert done.returncode == 1
    assert done.stderr == f"{said}: pip install '.[commands]' in the checkout of mtl\n"


def test_a_command_says_what_to_install() -> None:
    done = python("import sys, mtl.__main__; sys.argv = ['mtl', 'run', 'table1']; mtl.__main__.main()", "pandas")
    assert done.returncode == 1
    assert done.stderr == (
        "mtl: this command needs pandas, which is not installed: pip install '.[figures]' in the checkout of mtl\n"
    )


def test_help_and_the_package_itself_wait_for_nothing_heavy() -> None:
    heavy = "{'torch', 'numpy', 'pandas', 'scipy', 'pyarrow', 'matplotlib', 'sklearn'}"
    code = "import mtl, mtl.cli, mtl.cli.claims, mtl.report.verdicts\n"
    done = python(f"{code}import sys; print(sorted({heavy} & set(sys.modules)))")
    assert done.stdout == "[]\n", done.stderr
