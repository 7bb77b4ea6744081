"""Put model weights where the worker looks for them. A page over wan_worker.weights."""

import argparse
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from wan_worker import tiny, weights
from wan_worker.catalog import MODELS, components_of
from wan_worker.errors import WorkerError


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Fill the worker's weight store.",
        epilog="A laptop needs only: python download_weights.py --tiny",
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument(
        "--tiny",
        action="store_true",
        help="write toy weights of the real classes: every code path runs, the picture is noise",
    )
    action.add_argument("--list", action="store_true", help="show which models are installed")
    action.add_argument("--verify", action="store_true", help="read every byte and compare hashes")
    parser.add_argument(
        "--models",
        nargs="+",
        choices=list(MODELS),
        default=list(MODELS),
        metavar="ID",
        help="which models (default: all): " + ", ".join(MODELS),
    )
    parser.add_argument(
        "--dest", type=Path, default=Path("models"), help="the store (default: models)"
    )
    options = parser.parse_args()
    try:
        if options.tiny:
            # A toy model's sizes trip hints that are meant for real ones.
            warnings.simplefilter("ignore")
            tiny.write(options.dest, options.models, report=print)
        elif options.verify:
            for component in components_of(options.models):
                weights.verify(options.dest, component)
                print(f"{component.name}: whole")
        here = weights.installed(options.dest)
    except WorkerError as error:
        print(f"{error.code}: {error.message}", file=sys.stderr)
        return 1
    for model_id in options.models:
        state = (
            "missing" if model_id not in here else "tiny" if here[model_id].tiny else "installed"
        )
        print(f"{model_id}: {state}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
