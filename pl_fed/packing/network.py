"""A network that several clients train at once: what can be packed, and how its layers are swapped for a pass."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers import PreTrainedModel

from pl_fed.adapters import ADAPTER_NAME, Adapter, AdapterLayer
from pl_fed.norms import is_statistic
from pl_fed.packing import attention
from pl_fed.packing.gelu import tanh_gelu
from pl_fed.packing.inputs import inputs_of
from pl_fed.packing.layers import (
    ROW_WISE,
    Forward,
    Pass,
    dense_forward,
    dropout_forward,
    lora_forward,
    pooler_forward,
)

FAMILIES = ("LlamaForCausalLM", "GPT2LMHeadModel", "BertForSequenceClassification", "ViTForImageClassification")
"""Classes whose forward is known to treat tokens one by one but for attention and what is swapped here."""
POOLERS = ("BertPooler",)
TANH_GELUS = ("NewGELUActivation",)  # GPT-2's; eight operations where torch has one
UNEQUAL_ROPE = ("dynamic", "longrope")  # frequencies depend on the longest sequence of the batch


def base_model(network: nn.Module) -> PreTrainedModel | None:
    """Return the outermost transformers model inside a module."""
    return next((module for module in network.modules() if isinstance(module, PreTrainedModel)), None)


def why_not_packed(network: nn.Module, adapter: Adapter) -> str | None:
    """Return why clients cannot train this network together, as part of a sentence; None if they can.

    Args:
        network: The module.
        adapter: Its federated tensors.
    """
    model = base_model(network)
    if model is None or type(model).__name__ not in FAMILIES:
        return f"{type(model or network).__name__} has no packed forward (only {', '.join(FAMILIES)} have)"
    return _why_not_model(model) or _why_not_trained(network, adapter)


def _why_not_model(model: PreTrainedModel) -> str | None:
    config = model.config
    if config._attn_implementation not in ("eager", "sdpa"):
        return f"its attention is `{config._attn_implementation}`, expected `eager` or `sdpa`"
    if getattr(config, "reorder_and_upcast_attn", False) or getattr(config, "add_cross_attention", False):
        return "its attention is not the ordinary one (`reorder_and_upcast_attn` or `add_cross_attention`)"
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in UNEQUAL_ROPE:
        return f"its positions (`{rope['rope_type']}`) depend on the longest sequence of a batch"
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        return "gradient checkpointing would run the forward pass again outside of it"
    return None


def _why_not_trained(network: nn.Module, adapter: Adapter) -> str | None:
    for layer in adapter.layers.values():
        if type(layer.module) is not LoraLinear or layer.module.lora_variant or any(layer.module.lora_bias.values()):
            return f"`{layer.name}` is no plain LoRA layer ({type(layer.module).__name__})"
        if layer.module.active_adapters != [ADAPTER_NAME] or layer.module.merged or layer.module.disable_adapters:
            return f"`{layer.name}` is merged, disabled or has several adapters"
    for name, value in adapter.dense.items():
        owner = network.get_submodule(name.rpartition(".")[0])
        if is_statistic(name) or not value.requires_grad:
            return f"`{name}` depends on all rows of a batch"
        if type(owner) not in ROW_WISE or name.rpartition(".")[2] not in ("weight", "bias"):
            return f"`{name}` is trained and belongs to {type(owner).__name__}"
    return None


class PackedNetwork:
    """A module whose layers can be swapped for those of a packed pass.

    Args:
        network: A module for which `why_not_packed` is None.
        adapter: Its federated tensors.
    """

    def __init__(self, network: nn.Module, adapter: Adapter) -> None:
        self.layers: list[AdapterLayer] = list(adapter.layers.values())
        self.model = cast(PreTrainedModel, base_model(network))
        self.inputs = inputs_of(self.model)
        modules = list(network.modules())
        self.dropouts = [module for module in modules if type(module) is nn.Dropout]
        self.poolers = [module for module in modules if type(module).__name__ in POOLERS]
        self.gelus = [module for module in modules if type(module).__name__ in TANH_GELUS]
        self.attentions = [module for module in modules if type(module).__name__.endswith("Attention")]
        self.dense: dict[str, nn.Module] = {}  # by the name of the layer
        for name in adapter.dense:
            owner = name.rpartition(".")[0]
            self.dense[owner] = network.get_submodule(owner)

    @contextmanager
    def running(self, run: Pass, values: Mapping[str, Tensor]) -> Iterator[None]:
        """Let the layers be those of a pass within a `with` block, its backward included.

        Args:
            run: The pass.
            values: Each client's tensors, stacked (clients, ...), by flat name.
        """
        forwards = self._forwards(run, values)
        kept = {module: vars(module).get("forward") for module in forwards}
        config, implementation = self.model.config, self.model.config._attn_implementation
        try:
            for module, forward in forwards.items():
                vars(module)["forward"] = forward
            for module in self.attentions:
                vars(module)[attention.PASS] = run
            config._attn_implementation = attention.NAME
            yield
        finally:
            config._attn_implementation = implementation
            for module in self.attentions:
                vars(module).pop(attention.PASS, None)
            for module, known in kept.items():
                vars(module).pop("forward", None)
                if known is not None:
                    vars(module)["forward"] = known

    def _forwards(self, run: Pass, values: Mapping[str, Tensor]) -> dict[nn.Module, Forward]:
        forwards: dict[nn.Module, Forward] = {}
        for layer in self.layers:
            forwards[cast(nn.Module, layer.module)] = lora_forward(layer, values, run)
        for name, module in self.dense.items():
            weight, bias = (values.get(f"{name}.{key}") for key in ("weight", "bias"))
            forwards[module] = dense_forward(module, weight, bias, run)
        for dropout in self.dropouts:
            if dropout.p > 0 and dropout.training:
                forwards[dropout] = dropout_forward(dropout, run)
        forwards |= dict.fromkeys(self.gelus, tanh_gelu)
        return forwards | {pooler: pooler_forward(pooler, run) for pooler in self.poolers}
