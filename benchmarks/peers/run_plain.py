"""The loop that one writes with PEFT alone: state dicts go in and out, every client gets a new optimizer."""

import peft
import torch
from workload import Task, sgd, train, trained

task = Task()
model = task.work.network()
server = {name: value.clone() for name, value in peft.get_peft_model_state_dict(model).items()}
task.mark()
for batches in task.work.batches:
    ends = []
    for own in batches:
        peft.set_peft_model_state_dict(model, server)
        train(model, own, sgd(model))
        ends.append({name: value.clone() for name, value in peft.get_peft_model_state_dict(model).items()})
    server = {name: torch.stack([end[name] for end in ends]).mean(0) for name in server}
    task.mark()
peft.set_peft_model_state_dict(model, server)
task.report(list(trained(model).values()), f"peft {peft.__version__}")
