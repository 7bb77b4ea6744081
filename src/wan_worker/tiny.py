"""The tiny Wan: trained weights of the real classes, for machines without a GPU.

They lie in the repository (``weights/tiny``), come out of ``training/``, draw coloured shapes that
move as the prompt says, and are installed in the store like any others.
Not covered: training them, and pictures of anything else.
"""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from wan_worker.catalog import MODELS, components_of
from wan_worker.weights import TINY, read_manifest, seal

TRAINED: Final = Path(__file__).resolve().parents[2] / "weights" / "tiny"


def write(
    models_dir: Path,
    model_ids: Iterable[str] = tuple(MODELS),
    report: Callable[[str], None] = lambda line: None,
) -> None:
    """Install the tiny components of these models; one that is already there stays as it is."""
    models_dir.mkdir(parents=True, exist_ok=True)
    for component in components_of(list(model_ids)):
        target = models_dir / component.name
        if read_manifest(target) is not None:
            report(f"{component.name}: already there")
            continue
        partial = models_dir / f"{component.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(TRAINED / component.name, partial)
        seal(partial, target, component, TINY)
        report(f"{component.name}: written")
