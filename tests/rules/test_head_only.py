"""The control moves the head by the example-weighted mean of the clients' heads, and nothing else."""

import torch
from lightning.pytorch import LightningModule
from peft import LoraConfig, get_peft_model
from torch import nn

from pl_fed.clients import ClientsConfig
from pl_fed.loaders import RoundLoader
from pl_fed.rounds import CohortConfig
from pl_fed.rules import HeadOnly
from tests.helpers.tiny import adapter_tensors, make_strategy, make_trainer


class Classifier(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        self.model = get_peft_model(network, LoraConfig(r=2, target_modules=["0"], modules_to_save=["1"]))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.model(batch).square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.01)

    def head(self) -> torch.Tensor:
        return dict(self.named_parameters())["model.base_model.model.1.modules_to_save.default.weight"].detach().clone()


def test_only_the_head_moves() -> None:
    """One step per client on 1 and 2 examples: head - 0.01 (1/3 g_0 + 2/3 g_1), g_k the client's own gradient."""
    data, module = torch.randn(3, 4), Classifier()
    start, factors = module.head(), adapter_tensors(module)
    gradients = []
    for examples in (data[:1], data[1:]):
        reference = Classifier()
        reference.training_step(examples, 0).backward()
        name = "model.base_model.model.1.modules_to_save.default.weight"
        gradients.append(dict(reference.named_parameters())[name].grad)
    trainer = make_trainer(make_strategy(HeadOnly(), cohort=CohortConfig(), clients=ClientsConfig()), max_epochs=1)
    trainer.fit(module, RoundLoader(data, [[0], [1, 2]], batch_size=2))
    expected = start - 0.01 * (gradients[0] / 3 + 2 * gradients[1] / 3)
    torch.testing.assert_close(module.head(), expected, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, adapter_tensors(module)[name]) for name, value in factors.items())
