"""Put model weights where the worker looks for them. A command for weights.tiny and .download."""

import argparse
import os
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from wan_worker import settings
from wan_worker.catalog.components import ENHANCER, Component, enhancer
from wan_worker.catalog.models import EXTRAS, MODELS, components_of, stored_bytes
from wan_worker.errors import ConfigInvalid, ModelUnavailable, WorkerError
from wan_worker.settings import Secret
from wan_worker.weights import download, store, tiny
from wan_worker.weights.hub import Hub

EXAMPLES = """
examples:
  a laptop needs only                 python download_weights.py --tiny
  one model for real                  python download_weights.py --models wan2.1-t2v-1.3b
  and what rewrites prompts           ... --models ID --enhancer
  to enlarge (upscale 2 or 4)         ... --models real-esrgan-x4plus
  onto a RunPod network volume        ... --models ID --dest /runpod-volume/models
  the same bytes as another store     ... --revision ORG/NAME=COMMIT (from its manifest.json)

Every component (text encoder, VAE, ...) is stored once, in bfloat16, however many models share it.
A run that was broken off goes on where it stopped. A repository that asks for a token is given the
one in the environment variable HF_TOKEN; it is read from nowhere else. HF_ENDPOINT names a mirror.
"""


def main() -> int:
    options = parse(arguments())
    everything = options.models is None and options.enhancer is None
    try:
        if options.tiny:
            # The sizes of toy models cause hints that are meant for real ones.
            warnings.simplefilter("ignore")
            names = [*MODELS, *EXTRAS] if everything else options.models or []
            others = [ENHANCER] if everything or options.enhancer else []
            tiny.write(options.dest, names, report=print, others=others)
        elif options.verify:
            verify(options.dest, options.models, options.enhancer)
        elif not options.list:
            token = os.environ.get("HF_TOKEN", "").strip()
            hub = Hub(Secret(token) if token else None)
            download.install(
                options.dest,
                options.models or [],
                hub,
                dict(options.revision),
                report=print,
                others=[options.enhancer] if options.enhancer else [],
            )
        present = store.installed(options.dest) | store.extras(options.dest)
    except WorkerError as error:
        print(f"{error.code}: {error.message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from here.", file=sys.stderr)
        return 130
    for model_id in (*MODELS, *EXTRAS) if everything else options.models or []:
        state = (
            "missing"
            if model_id not in present
            else "tiny"
            if present[model_id].tiny
            else "installed"
        )
        print(f"{model_id}: {state}  ({stored_bytes([model_id]) / 1e9:.1f} GB)")
    if everything or options.enhancer:
        chosen = options.enhancer or ENHANCER
        found = store.locate(chosen, options.dest)
        state = "missing" if found is None else "tiny" if found.tiny else "installed"
        print(f"{chosen.repository} (enhancer): {state}  ({chosen.stored_bytes / 1e9:.1f} GB)")
    return 0


def verify(models_dir: Path, model_ids: list[str] | None, language_model: Component | None) -> None:
    """Read every byte of these models, or of every installed component if none is named."""
    chosen = (*components_of(model_ids or []), *([language_model] if language_model else []))
    if not chosen:
        every = (*components_of([*MODELS, *EXTRAS]), ENHANCER)
        chosen = tuple(c for c in every if (models_dir / c.name).is_dir())
    if not chosen:
        raise ModelUnavailable("Nothing is installed here")
    for component in chosen:
        store.verify(models_dir, component)
        print(f"{component.name}: whole")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Fill the worker's weight store, or look what is in it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument(
        "--tiny",
        action="store_true",
        help="write toy weights of the real classes: every code path runs, and the Wan 2.1 models "
        "of text and of images draw the simple shapes that they were trained on",
    )
    action.add_argument("--list", action="store_true", help="show which models are installed")
    action.add_argument("--verify", action="store_true", help="read every byte and compare hashes")
    parser.add_argument(
        "--models",
        nargs="+",
        choices=[*MODELS, *EXTRAS],
        metavar="ID",
        help="which models to download (or write, list, verify): "
        + ", ".join(MODELS)
        + ", and what enlarges their pictures: "
        + ", ".join(EXTRAS),
    )
    parser.add_argument(
        "--enhancer",
        type=repository,
        nargs="?",
        const=ENHANCER,
        metavar="ORG/NAME",
        help="the language model for enhance_prompt, the worker's ENHANCER_MODEL "
        f"(default: {ENHANCER.repository})",
    )
    parser.add_argument(
        "--dest",
        type=Path,
        default=Path("models"),
        help="the store, the worker's MODELS_DIR (default: models)",
    )
    parser.add_argument(
        "--revision",
        type=revision,
        action="append",
        default=[],
        metavar="[REPOSITORY=]REVISION",
        help="branch, tag or commit, of one repository or of all; may be repeated (default: main)",
    )
    return parser


def repository(text: str) -> Component:
    """A language model's repository, as a component of the store."""
    try:
        return enhancer(settings.from_env({"ENHANCER_MODEL": text}).enhancer_model)
    except ConfigInvalid:
        raise argparse.ArgumentTypeError("must be a Hub repository such as ORG/NAME") from None


def revision(text: str) -> tuple[str, str]:
    """``ORG/NAME=REVISION``, or one revision for every repository (``*``)."""
    repository, equals, name = text.rpartition("=")
    return (repository, name) if equals else ("*", text)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options. A download needs names: it never takes everything by default."""
    options = parser.parse_args()
    named = options.models is not None or options.enhancer is not None
    if not (named or options.tiny or options.list or options.verify):
        parser.error(
            "name the --models or --enhancer to download, or one of --tiny, --list, --verify"
        )
    return options


if __name__ == "__main__":
    sys.exit(main())
