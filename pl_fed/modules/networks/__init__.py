"""Small networks for images, one file each; none is pretrained."""

from pl_fed.modules.networks.build import NAMES, build_network
from pl_fed.modules.networks.groupnorm_cnn import GroupNormCNN
from pl_fed.modules.networks.icnet import ICNet
from pl_fed.modules.networks.lenet import LeNet
from pl_fed.modules.networks.preact_resnet import PreActResNet
from pl_fed.modules.networks.small_cnn import SmallCNN
from pl_fed.modules.networks.vgg import VGG
from pl_fed.modules.networks.vit import TinyViT

__all__ = ["NAMES", "VGG", "GroupNormCNN", "ICNet", "LeNet", "PreActResNet", "SmallCNN", "TinyViT", "build_network"]
