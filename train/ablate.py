"""The paper's ablations, in the size that you can afford: `python -m train.ablate table1|table3|table4|phases`.

Each writes a table (Markdown and CSV) and plots into --output, keeps what is finished there, and goes on with the rest
when it is started again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from diffv2ir.data import Example, check_examples, read_examples, split_validation
from diffv2ir.scores import distance_views
from diffv2ir.training.ablation import sweep
from diffv2ir.training.ablation.cells import model_hash
from diffv2ir.training.ablation.leakage import compare_splits
from diffv2ir.training.ablation.phase_sheet import draw_sheet
from diffv2ir.training.ablation.phase_table import PhaseTable, Recipe
from diffv2ir.training.ablation.scoring import SPLITS, choose_pairs, load_pipe
from diffv2ir.training.ablation.trainings import Trainings, shrunk
from diffv2ir.training.captioner import unseen_captions
from diffv2ir.training.config import load_config
from diffv2ir.training.learnt import digest
from diffv2ir.training.pack import pack_bundle
from diffv2ir.training.phases import PhaseConfig
from diffv2ir.training.tiny import DEFAULTS, GENERAL
from train.launch import run

CONFIGS = Path(__file__).parent / "configs" / "ablation"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="table1|table3|table4|phases")
    for add in (_add_table1, _add_table3, _add_table4, _add_phases):
        add(commands)
    arguments = parser.parse_args()
    run(lambda: arguments.command(arguments), arguments.threads)


def _add(commands, name: str, command, help: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=help, description=help)
    parser.set_defaults(command=command)
    parser.add_argument("--output", type=Path, required=True, help="folder of tables, plots and finished cells")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="changes to the settings that pictures are made with"
    )
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="dataset folder: manifest.jsonl, or rgb/ ir/ [seg/]")
    parser.add_argument("--seed", type=int, default=0, help="of the noise, and of whatever is drawn by lot")
    parser.add_argument(
        "--fid", action="store_true", help="also FID, KID and LPIPS, whose networks must be here or are downloaded"
    )


def _add_split(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--split", choices=SPLITS, default="validation", help="what is scored; default: %(default)s")
    parser.add_argument("--limit", type=int, help="at most so many pairs, drawn by --seed")


def _add_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cache", type=Path, help="captions, maps and latents; default: OUTPUT/cache")
    parser.add_argument("--vlum", type=Path, help="folder with captioner and segmenter")
    parser.add_argument("--steps-factor", type=float, default=1.0, help="times the steps of the configurations")


def _add_table1(commands) -> None:
    parser = _add(commands, "table1", _table1, "Table 1: the same recipe on a random split and on a split by scene")
    _add_data(parser)
    _add_training(parser)
    parser.add_argument("--start", type=Path, required=True, help="folder that phase 2 starts from")
    parser.add_argument("--config", type=Path, default=CONFIGS / "phase2.yaml", help="of phase 2; default: %(default)s")
    parser.add_argument("--sources", nargs="*", help="cameras; default: all of the configuration")
    parser.add_argument("--test-fraction", type=float, default=0.2, help="of each camera; default: %(default)s")


def _table1(arguments: argparse.Namespace) -> Path:
    config = shrunk(load_config(arguments.config, PhaseConfig), arguments.steps_factor)
    if config.phase != "2":
        raise ValueError(f"{arguments.config} is a configuration of phase {config.phase}, not of phase 2")
    examples = read_examples(arguments.data, "train", ["pairs"], arguments.sources)
    check_examples(examples)
    return compare_splits(
        examples,
        config,
        arguments.start,
        _trainings(arguments, arguments.vlum or arguments.start),
        arguments.output,
        fraction=arguments.test_fraction,
        seed=arguments.seed,
        changes=read_changes(arguments.set),
        views=distance_views(arguments.fid),
    )


def _trainings(arguments: argparse.Namespace, vlum: Path, finished: Path | None = None) -> Trainings:
    cache = arguments.cache or arguments.output / "cache"
    folder = arguments.output / "trainings"
    if finished is None:
        return Trainings(folder, cache, vlum)
    return Trainings(folder, cache, vlum, finished, finished / "teacher", unseen_captions(finished / "captioner"))


def _add_table3(commands) -> None:
    parser = _add(commands, "table3", _table3, "Table 3: all combinations of phases, map and caption on and off")
    _add_data(parser)
    _add_split(parser)
    _add_training(parser)
    parser.add_argument("--run", type=Path, required=True, help="output folder of train.tiny; it is only read")
    parser.add_argument("--configs", type=Path, default=CONFIGS, help="folder of configurations; default: %(default)s")
    parser.add_argument(
        "--phase2", nargs="+", default=["phase2"], metavar="NAME", help="configurations, in their order"
    )
    parser.add_argument("--phase3", default="phase3", metavar="NAME", help="configuration of the target style")
    parser.add_argument(
        "--trained", action="store_true", help="also train all phases without map, without caption, without both"
    )


def _table3(arguments: argparse.Namespace) -> Path:
    recipe = _recipe(arguments)
    _, target = recipe.phase3
    everything = read_examples(arguments.data, "train")
    check_examples(everything)
    train, _ = split_validation(everything)
    pairs = choose_pairs(arguments.data, arguments.split, target.sources, arguments.limit, arguments.seed)
    settings = recipe.settings.replace(**{"seed": arguments.seed, **read_changes(arguments.set)})
    trainings = _trainings(arguments, arguments.vlum or arguments.run / "vlum", arguments.run)
    title = _table3_title(recipe, pairs, arguments.split)
    views, output = distance_views(arguments.fid), arguments.output
    return PhaseTable(recipe, trainings, train, pairs, settings, output, title, arguments.trained, views).make()


def _recipe(arguments: argparse.Namespace) -> Recipe:
    """The configurations; phase 1 is not shrunk, so that a run's own is taken where there is one."""
    base = arguments.run / "base" / "result"
    if not (base / "model_index.json").is_file():
        raise ValueError(f"{arguments.run} has no base/result: --run wants the output folder of train.tiny")

    def load(name: str) -> PhaseConfig:
        return load_config(arguments.configs / f"{name}.yaml", PhaseConfig)

    phase2 = {name: shrunk(load(name), arguments.steps_factor) for name in arguments.phase2}
    phase3 = (arguments.phase3, shrunk(load(arguments.phase3), arguments.steps_factor))
    for phase, configs in (("2", phase2), ("3", dict([phase3]))):
        for name, config in configs.items():
            if config.phase != phase:
                raise ValueError(f"{name}.yaml is a configuration of phase {config.phase}, not of phase {phase}")
    return Recipe(base, load("phase1"), phase2, phase3)


def _table3_title(recipe: Recipe, pairs: list[Example], split: str) -> str:
    stages = [f"phase 2 ({name})" if name != "phase2" else "phase 2" for name in recipe.phase2]
    configs = [*recipe.phase2.values(), recipe.phase3[1]]
    steps = ", ".join(
        f"{stage} {config.loop.steps} steps of {config.loop.batch_size}"
        for stage, config in zip([*stages, "phase 3"], configs, strict=True)
    )
    return (
        f"Table 3 of the paper, scored on {len(pairs)} pairs of the {split} part of the target style "
        f"`{recipe.phase3[1].style}`. {steps}."
    )


def _add_table4(commands) -> None:
    parser = _add(commands, "table4", _table4, "Table 4: steps and each guidance scale of one bundle")
    _add_data(parser)
    _add_split(parser)
    parser.add_argument("--bundle", default="tiny", help="as --bundle of the page; default: %(default)s")
    parser.add_argument("--sources", nargs="*", help="cameras; default: all")
    for axis, values in sweep.VALUES.items():
        option = "--" + axis.replace("_", "-")
        parser.add_argument(option, default=values, metavar="VALUES", help="values, as 1,2,5 or 1-5 (+2); %(default)s")


def _table4(arguments: argparse.Namespace) -> Path:
    examples = choose_pairs(arguments.data, arguments.split, arguments.sources, arguments.limit, arguments.seed)
    pipe = load_pipe(arguments.bundle)
    settings = pipe.default_settings.replace(**{"seed": arguments.seed, **read_changes(arguments.set)})
    values = {axis: getattr(arguments, axis) for axis in sweep.VALUES}
    title = f"Table 4 of the paper with `{pipe.config.name}`: {len(examples)} pairs of the {arguments.split} part"
    return sweep.sweep(pipe, examples, settings, values, arguments.output, title, distance_views(arguments.fid))


def _add_phases(commands) -> None:
    parser = _add(commands, "phases", _phases, "Figure I: photos through the phases of the training")
    parser.add_argument("photos", nargs="+", type=Path, metavar="PHOTO")
    parser.add_argument("--real", nargs="*", type=Path, default=[], metavar="FILE", help="their real infrared pictures")
    parser.add_argument("--bundle", help="as --bundle of the page; default: tiny")
    parser.add_argument("--run", type=Path, help="output folder of train.tiny, in place of --bundle: holds all phases")
    parser.add_argument("--styles", nargs="*", default=[], metavar="NAME", help="with --run: its phases 3 to show")
    parser.add_argument("--seed", type=int, default=0)


def _phases(arguments: argparse.Namespace) -> Path:
    if arguments.run and arguments.bundle:
        raise ValueError("--run and --bundle exclude each other")
    bundle = _packed(arguments.run, arguments.styles, arguments.output) if arguments.run else arguments.bundle
    pipe = load_pipe(bundle or "tiny")
    settings = pipe.default_settings.replace(**{"seed": arguments.seed, **read_changes(arguments.set)})
    return draw_sheet(pipe, arguments.photos, settings, arguments.output, arguments.real)


def _packed(finished: Path, styles: list[str], output: Path) -> Path:
    """A bundle of a run's results that holds all phases, made once of the same results and styles."""
    early = (finished / "base" / "result", finished / "phase1" / "result")
    adapters = {style: finished / f"phase3-{style}" / "result" for style in styles}
    general = finished / GENERAL / "result"
    key = digest([finished.name, DEFAULTS, styles, *map(model_hash, (general, *early, *adapters.values()))])
    bundle = output / f"bundle-{key}"
    if not bundle.is_dir():
        pack_bundle(general, adapters, bundle, finished.name, DEFAULTS, early)
    return bundle


def read_changes(changes: list[str]) -> dict[str, str | float]:
    """NAME=VALUE entries as a mapping for `GenerationSettings.replace`, which checks names and values.

    Raises:
        ValueError: an entry without "=".
    """
    values: dict[str, str | float] = {}
    for change in changes:
        name, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"--set wants NAME=VALUE, got {change!r}")
        try:
            values[name] = float(text)
        except ValueError:
            values[name] = text
    return values


if __name__ == "__main__":
    main()
