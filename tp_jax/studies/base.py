"""The frozen base of a study that fine-tunes: given, published, or trained in the study."""

import dataclasses

from etils import epath

from tp_jax.files.hub import local
from tp_jax.messages.errors import UserError
from tp_jax.studies.config_files import ConfigFile
from tp_jax.studies.study import BASE, THINKING, Variant

# Fields that make a run a fine-tuning one. A config without them trains its base.
_FINE_TUNING = ("train.trainable", "init.base")


@dataclasses.dataclass(frozen=True)
class Base:
    """Where the base of each seed comes from. One of the fields is set.

    Attributes:
      file: the config that trains it in the study; None if it isn't trained there.
      folder: folder with the bases, as SEED or SEED/run; None if they weren't given.
      published: the same base for all seeds, `config.init.base`; "" if there is none.
    """

    file: ConfigFile | None = None
    folder: epath.Path | None = None
    published: str = ""

    @property
    def variant(self) -> Variant | None:
        """Return the variant that is the base; None if it has no workdir."""
        return None if self.published else Variant(BASE, "the frozen base, without thinking")

    def run(self, seed: int) -> epath.Path | None:
        """Return the workdir of a base that was given."""
        return _workdir(self.folder, seed) if self.folder else None


def _workdir(folder: epath.Path, seed: int) -> epath.Path | None:
    places = (folder / str(seed), folder / str(seed) / "run")
    return next((place for place in places if (place / "checkpoints").is_dir()), None)


def find_base(file: ConfigFile, given: str, seeds: int) -> Base:
    """Return the base of a fine-tuning config.

    A base that was given with --base comes first, then one given with --config.init.base. Then the
    study trains it with the same config file, if the file without one of its variants, or without
    --config.train.trainable, trains all parameters. Otherwise it is the file's `init.base`.

    Args:
      file: the config of the study.
      given: the value of --base, or "".
      seeds: number of seeds.

    Raises:
      UserError: a given base lacks seeds, or `init.base` doesn't exist.
    """
    if given:
        folder = epath.Path(given)
        lacking = [seed for seed in range(seeds) if _workdir(folder, seed) is None]
        if lacking:
            raise UserError(
                f"--base={given} has no trained base for seed {', '.join(map(str, lacking))} of "
                f"{seeds}: it must have the workdirs {folder / '0'} … {folder / str(seeds - 1)}"
            )
        return Base(folder=folder)
    published = file.load().init.base
    trains = None if "init.base" in file.fields else _training_config(file)
    if trains:
        return Base(file=trains)
    if not local(published).exists():
        raise UserError(
            f"the study needs a frozen base, but config.init.base={published!r} doesn't exist: "
            f"convert or train it, or give --base=ROOT with the workdirs ROOT/SEED"
        )
    return Base(published=published)


def _training_config(file: ConfigFile) -> ConfigFile | None:
    """Return the config that trains the base of a fine-tuning config; None if there is none."""
    fields = {name: value for name, value in file.fields.items() if name not in _FINE_TUNING}
    plain = dataclasses.replace(file, fields=fields)
    candidates = [plain, *(plain.without(variant) for variant in file.variants)]
    for candidate in candidates:
        config = candidate.load()
        if config.train.trainable == "all" and not config.init.base:
            if not config.model.thinking.layers:
                return candidate
            return candidate.adding("", {THINKING + "layers": ()})
    return None
