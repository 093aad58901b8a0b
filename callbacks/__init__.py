"""Callbacks for federated rounds; each also runs under a plain Trainer."""

from pl_fed.callbacks.audit_report import AuditPage
from pl_fed.callbacks.client_dp import ClientDP
from pl_fed.callbacks.communication_monitor import CommunicationMonitor, CommunicationTotals
from pl_fed.callbacks.fishing_tripwire import FishingTripwire
from pl_fed.callbacks.keep_freed_memory import KeepFreedMemory, keep_freed_memory
from pl_fed.callbacks.label_inference_attack import LabelInferenceAttack
from pl_fed.callbacks.partition_report import PartitionReport
from pl_fed.callbacks.progress import FederatedProgressBar, FederatedRichProgressBar
from pl_fed.callbacks.public_refinement import PublicRefinement
from pl_fed.callbacks.rank_pruning import RankPruning
from pl_fed.callbacks.round_plots import RoundPlots
from pl_fed.callbacks.run_summary import RunSummary
from pl_fed.callbacks.wandb_rounds import WandbRounds

__all__ = [
    "AuditPage",
    "ClientDP",
    "CommunicationMonitor",
    "CommunicationTotals",
    "FederatedProgressBar",
    "FederatedRichProgressBar",
    "FishingTripwire",
    "KeepFreedMemory",
    "LabelInferenceAttack",
    "PartitionReport",
    "PublicRefinement",
    "RankPruning",
    "RoundPlots",
    "RunSummary",
    "WandbRounds",
    "keep_freed_memory",
]

if __name__ == "callbacks":  # a second copy of every class would make `isinstance` lie
    raise ImportError("Expected `pl_fed.callbacks` but got `callbacks`: import it as `pl_fed.callbacks`.")
