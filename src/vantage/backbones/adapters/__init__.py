"""One adapter per family of timm models."""

from vantage.backbones.adapters.base import Adapter
from vantage.backbones.adapters.davit import DaViT
from vantage.backbones.adapters.maxvit import MaxViT
from vantage.backbones.adapters.pvt_v2 import PVTv2
from vantage.backbones.adapters.resnet import ResNet
from vantage.backbones.adapters.swin import Swin
from vantage.backbones.adapters.twins import Twins
from vantage.backbones.adapters.vit import ViT

ADAPTERS: dict[str, Adapter] = {
    adapter.family: adapter for adapter in (MaxViT(), ViT(), Swin(), DaViT(), PVTv2(), Twins(), ResNet())
}
