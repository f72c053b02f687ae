"""What tasks on feature maps rely on: the maps reach every parameter but those of the head, which can be frozen."""

import pytest
import torch

from .families import each_family, images, small, softmax


@each_family
@pytest.mark.parametrize("attention", [None, softmax], ids=["native", "softmax"])
def test_maps_train_everything_but_the_frozen_head(family, attention):
    model = small(family, attention, num_classes=0)
    everything = sum(parameter.numel() for parameter in model.parameters())
    model.freeze_head()
    sum(one.square().sum() for one in model.features(images((64, 64)))).backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not [name for name, parameter in trained.items() if parameter.grad is None]
    assert sum(parameter.numel() for parameter in trained.values()) > 0.95 * everything


def test_the_map_of_a_vit_has_passed_its_final_norm():
    """The small variant's norm comes after pooling in timm; on the map it acts on every token."""
    model = small("vit").eval()
    with torch.no_grad():
        model.net.fc_norm.bias.fill_(3.0)
        (features,) = model.features(images((64, 64)))
    torch.testing.assert_close(features.mean(1), torch.full_like(features[:, 0], 3.0), rtol=0, atol=1e-4)
