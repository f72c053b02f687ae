import inspect
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from vantage.data.augment import Augment

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DATA = sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml"))
AUGMENT = sorted(path.stem for path in (CONFIGS / "augment").glob("*.yaml"))
# the class serves several data sets: these belong to each of them
OWN = {
    "cifar100": {"mean", "std"},
    "fashion_mnist": {"mean", "std", "in_chans"},
    "imagenet": {"center_crop", "val_fraction"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The two groups under a root config that has what they refer to."""
    folder = tmp_path_factory.mktemp("configs")
    for group in ("data", "augment"):
        (folder / group).symlink_to(CONFIGS / group)
    (folder / "root.yaml").write_text(
        "defaults: [{data: classification}, {augment: default}, _self_]\nseed: 3\npaths: {data_dir: /data}\n"
    )
    return str(folder)


def composed(root, *overrides):
    with initialize_config_dir(root, version_base="1.3"):
        return compose("root", list(overrides))


def plain(value):
    return list(value) if isinstance(value, tuple) else value


def defaults(target):
    parameters = inspect.signature(get_class(target)).parameters.values()
    return {p.name: plain(p.default) for p in parameters if p.default is not inspect.Parameter.empty}, {
        p.name for p in parameters
    }


@pytest.mark.parametrize("name", DATA)
def test_data_config_spells_out_every_keyword_with_its_default(root, name):
    config = OmegaConf.to_container(composed(root, f"data={name}").data, resolve=True)
    target = config.pop("_target_")
    known, keywords = defaults(target)
    assert set(config) == keywords
    skipped = {"seed", "augment", "default_augment"} | OWN.get(name, set())
    assert {k: v for k, v in config.items() if k in known and k not in skipped} == {
        k: v for k, v in known.items() if k not in skipped
    }
    assert config["seed"] == 3


@pytest.mark.parametrize("name", DATA)
def test_data_config_makes_its_module(root, name):
    data = instantiate(composed(root, f"data={name}").data)
    assert isinstance(data.augment, Augment)
    assert data.seed == 3
    explicit = instantiate(composed(root, f"data={name}", "augment=none").data)
    assert vars(explicit.augment) == vars(Augment()) != vars(data.augment)
    changed = instantiate(composed(root, f"data={name}", "augment=flip_crop", "augment.erase=0.3").data)
    assert (changed.augment.flip, changed.augment.crop, changed.augment.erase) == (0.5, "pad", 0.3)


def test_the_default_data_set_of_classification_is_digits(root):
    config = composed(root)
    assert config.data._target_ == "vantage.data.digits.Digits"
    assert config.data.default_augment == composed(root, "augment=digits").augment


@pytest.mark.parametrize("name", [name for name in AUGMENT if name != "default"])
def test_augment_config_spells_out_every_option(root, name):
    config = OmegaConf.to_container(composed(root, f"augment={name}").augment)
    known, keywords = defaults(config.pop("_target_"))
    assert set(config) == keywords
    if name == "none":
        assert config == known
    else:
        assert config != known
    assert isinstance(instantiate(composed(root, f"augment={name}").augment), Augment)
