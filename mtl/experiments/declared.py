"""What a notebook shows first: the published rows of a declared study, or the command that makes them."""

from mtl.experiments.base import Experiment
from mtl.experiments.study import Options, Study
from mtl.runs.tuning import NO_STUDY


def declared(*made: Experiment, at: str) -> tuple[Study | None, str]:
    """The published rows of scale study of all of these, None without any; and what is there, or how to make it.

    `at`: the scale of the notebook.
    """
    found, there, lacking = list[Study](), list[str](), dict[str, None]()
    for one in made:
        for options in one.chosen("study"):
            try:
                study = one.published("study", at=at, **options)
            except NO_STUDY:
                lacking[f"mtl run {one.name} --scale study"] = None
            else:
                found.append(study)
                there.append(f"{_name(one, options)}: {len(study.seeds)} of {len(one.seeds['study'])} seeds")
    said = [f"Study rows: {'; '.join(there)}."] if there else []
    said += [f"No study rows yet: `{' && '.join(lacking)}`."] if lacking else []
    if len(found) < 2:
        return (found[0] if found else None), "\n".join(said)
    first, *others = found
    return first.also(*others), "\n".join(said)


def _name(one: Experiment, options: Options) -> str:
    """The experiment, with the options that tell its variants apart."""
    words = [f"{name}={value}" for name, value in options.items()] if len(one.chosen("study")) > 1 else []
    return " ".join([one.name, *words])
