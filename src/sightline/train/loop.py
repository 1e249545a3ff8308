"""A recipe -> a run: the training loop."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from sightline.data.collate import LeftOut, batches
from sightline.data.dataset import Dataset, list_of_bad_rows, open_dataset
from sightline.data.plan import Pack, Plan
from sightline.errors import UserError
from sightline.limits import use
from sightline.model.adapters import merge_adapters
from sightline.model.assemble import assemble, check_bits, check_length, make_prompter
from sightline.model.attention import packed_attention
from sightline.model.load import VLM
from sightline.model.restore import restore
from sightline.model.save import save
from sightline.model.tune import Group, apply_tuning, quantize
from sightline.model.weights import (
    FINISHED,
    LEARNED,
    PREFIX,
    check_base,
    fingerprints,
    load_weights,
)
from sightline.page.numbers import counted
from sightline.recipe import Recipe
from sightline.runtime import console, pick_device, pick_dtype, rank, say, seed_everything, versions, world_size
from sightline.train.beforehand import check_learnable, remarks
from sightline.train.checkpoint import (
    check_data,
    check_step,
    find_state,
    is_of,
    load_optimizer,
    prune,
    save_checkpoint,
    save_learned,
    sweep_run,
)
from sightline.train.engine import Engine, meet
from sightline.train.folder import BAD_ROWS, FACTS, REPORT, RunFolder, claimed
from sightline.train.forecast import layers_recomputed, room_on
from sightline.train.late import Late
from sightline.train.metrics import FILE as LOG
from sightline.train.metrics import Log, summary_writer
from sightline.train.noise import noisy_embeddings
from sightline.train.optim import check_optimizer, lr_scale, set_rates
from sightline.train.plan_rows import rows_of
from sightline.train.report import read_run, write_report
from sightline.train.work import Work, peak_of

AfterStep = Callable[[int, VLM], None]


def train(
    recipe: Recipe, work_dir: str | Path, *, resume: str | None = None, after_step: AfterStep | None = None
) -> Path:
    """Train as the recipe says, and write the run to `work_dir`; returns the folder of the finished model.

    `resume` is a checkpoint, or `auto` for the newest of `work_dir` (from the beginning if there is none yet).
    `after_step` is called with the number of steps done and the model, ready to answer.
    """
    with claimed(Path(work_dir)) as folder:
        return train_in(folder, recipe, resume=resume, after_step=after_step)


def train_in(
    folder: RunFolder, recipe: Recipe, *, resume: str | None = None, after_step: AfterStep | None = None
) -> Path:
    """The same in a folder that is held already."""
    use(recipe.limits)
    if recipe.run.tensorboard:
        summary_writer()
    device = pick_device(recipe.engine.device)
    dtype = pick_dtype(recipe.engine.dtype, device)
    if recipe.engine.pure_bf16 and dtype != torch.bfloat16:
        # By itself a device takes float16 only where it has nothing better.
        lacks = f"{device.type} does not compute in bfloat16; leave it out"
        unasked = f"{device.type} takes float32 by itself; add engine.dtype=bfloat16"
        raise UserError(f"engine.pure_bf16: {lacks if dtype == torch.float16 else unasked}")
    meet(device)
    check_optimizer(recipe.optim, device)
    run = folder.path
    state = find_state(run, resume, recipe)
    if rank() == 0:
        folder.begin(recipe, state.folder if state is not None and is_of(state, run) else None)
    prompter = make_prompter(recipe.model)
    check_length(recipe.model, recipe.batch.max_length)
    check_bits(recipe.model, recipe.tune, device)
    dataset = open_dataset(recipe.data, prompter, recipe.batch.max_length, console, seed=recipe.run.seed)
    check_learnable(recipe, len(dataset), int(dataset.images.sum()))
    if state is not None:
        check_data(state, dataset.fingerprint)
    for line in remarks(recipe, len(dataset)):
        say(line)
    seed_everything(recipe.run.seed)
    vlm = assemble(recipe.model, prompter)
    plan = Plan(
        tokens=dataset.tokens,
        global_batch=recipe.batch.global_batch,
        epochs=recipe.optim.epochs,
        seed=recipe.run.seed,
        max_steps=recipe.optim.max_steps,
        shuffle=recipe.batch.shuffle,
        width=vlm.model.config.text_config.hidden_size,
    )
    if state is not None:
        check_step(state, plan.num_steps)
    base = fingerprints(vlm.model)
    if state is not None:
        check_base(state.folder, base, recipe.tune)
    if recipe.tune.quantized:
        quantize(vlm.model, recipe.tune, device=device, dtype=dtype)
    groups = apply_tuning(vlm.model, recipe.tune, recipe.optim)
    engine = Engine(vlm, groups, recipe, recomputed=_recomputed(recipe, dataset, vlm, device))
    if state is not None:
        # Now that learning tensors have full precision: the model's files may have half of it.
        load_weights(state.folder, vlm.model)
        load_optimizer(state, engine.optimizer)
    start = state.step if state is not None else 0
    if engine.is_main:
        _open_run(folder, recipe, dataset, plan, groups)
    late = Late(engine, folder, dataset) if any(one.on_bad_row == "skip" for one in dataset.index.sources) else None
    work = Work(vlm.model, peak_of(engine.device, dtype))

    budget = recipe.batch.pack_tokens or recipe.batch.max_length
    feed = batches(
        dataset, _all_packs(plan, engine, budget, start), workers=recipe.batch.workers, pin=engine.choice.pin_memory
    )
    with Log(
        run,
        first_step=start,
        num_steps=plan.num_steps,
        tensorboard=recipe.run.tensorboard,
        every=recipe.run.log_every,
        main=engine.is_main,
        console=console,
    ) as log:
        for step in range(start, plan.num_steps):
            samples = plan.samples(step)
            packs = plan.packs(step, rank=engine.rank, world=engine.world, budget=budget)
            num_targets = int(dataset.targets[samples].sum())
            # So that dropout too depends on nothing but the step (and on how it is cut into packs).
            seed_everything(((recipe.run.seed * 1_000_003 + step) * engine.world + engine.rank) % 2**63)
            rates = set_rates(engine.optimizer, lr_scale(step, plan.num_steps, recipe.optim))
            total, left_out = 0.0, list[LeftOut]()
            with packed_attention(vlm.model):
                for number, pack in enumerate(packs):
                    with log.waiting():
                        batch = next(feed)
                    left_out += batch.left_out
                    noise = noisy_embeddings(
                        vlm, batch, pack, recipe.optim.neftune_alpha, seed=recipe.run.seed, step=step
                    )
                    with engine.accumulating(last=number == len(packs) - 1), noise:
                        loss = engine.loss_sum(batch)
                        engine.backward(loss / num_targets)
                    work.add(batch)
                    total += float(loss.detach())
            if late is not None and (lost := late.add(step + 1, left_out)):
                # The mean is over what was there to learn.
                engine.rescale(num_targets / max(num_targets - lost, 1))
                num_targets = max(num_targets - lost, 1)
            mean = engine.sum(total) / num_targets
            if not math.isfinite(mean):
                raise _not_finite(f"loss is {mean}", step, dataset, samples)
            norm = engine.step()
            if norm is not None and not math.isfinite(norm) and not engine.scales:
                raise _not_finite(f"norm of the gradient is {norm}", step, dataset, samples)
            log.step(
                step=step + 1,
                loss=mean,
                lr=rates,
                grad_norm=norm,
                tokens=int(dataset.tokens[samples].sum()),
                samples=len(samples),
                targets=num_targets,
                budget=budget * len(packs) * engine.world,
                operations=engine.sum(work.take()),
                peak=work.peak and work.peak * engine.world,
            )
            if _is_due(step + 1, recipe.run.save_every, plan.num_steps):
                if engine.is_main:
                    optimizer, data = engine.optimizer, dataset.fingerprint
                    save_checkpoint(run, step + 1, vlm.model, optimizer, recipe, data=data, base=base)
                    prune(run, step + 1, recipe.run.keep)
                engine.wait()
            if after_step is not None and engine.is_main:
                with engine.answering() as answering:
                    after_step(step + 1, answering)
    last = run / f"{PREFIX}{plan.num_steps}"
    if not engine.is_main:
        return run
    finished = _finish(folder, last if last.exists() or state is None else state.folder, recipe, vlm, dtype)
    if late is not None:
        late.tell()
    folder.note(REPORT)
    write_report(run / REPORT, title=run.name, runs=[read_run(run)])
    what = "the model" if recipe.run.export else "what was learned"
    say(f"finished: {what} is in {finished}, the report in {run / REPORT}")
    return finished


def _finish(folder: RunFolder, last: Path, recipe: Recipe, vlm: VLM, dtype: torch.dtype) -> Path:
    """Write what was learned, where that is less than the model, and the model; returns the folder of the latter."""
    if recipe.tune.llm != "full" or not recipe.run.export:
        folder.note(LEARNED)
        learned = save_learned(folder.path, last)
        if not recipe.run.export:
            return learned
    if recipe.tune.quantized:
        say("the model is written with its own weights instead of the 4 bits of training: near to it, not equal")
        vlm = restore(last, recipe, dtype=dtype)
    merge_adapters(vlm.model)
    folder.note(FINISHED)
    return save(vlm, folder.path / FINISHED, dtype=dtype, replace=True)


def _recomputed(recipe: Recipe, dataset: Dataset, vlm: VLM, device: torch.device) -> int:
    """In how many layers of the language model activations are computed twice instead of kept."""
    wish, layers = recipe.engine.gradient_checkpointing, int(vlm.model.config.text_config.num_hidden_layers)
    if wish != "auto":
        return layers if wish else 0
    if (room := room_on(device)) is None:
        return 0
    try:
        number = layers_recomputed(recipe, rows_of(dataset), layers, room=room, count=world_size())
    except (UserError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        say(f"how much memory a step takes cannot be told ({reason}): all layers compute their activations twice")
        return layers
    if number:
        say(f"to fit into memory, {number} of {layers} layers compute their activations twice")
    return number


def _all_packs(plan: Plan, engine: Engine, budget: int, start: int) -> Iterator[Pack]:
    for step in range(start, plan.num_steps):
        yield from plan.packs(step, rank=engine.rank, world=engine.world, budget=budget)


def _is_due(step: int, every: int, num_steps: int) -> bool:
    return step == num_steps or (every > 0 and step % every == 0)


def _open_run(folder: RunFolder, recipe: Recipe, dataset: Dataset, plan: Plan, groups: list[Group]) -> None:
    """Write down what the run is: the resolved recipe, versions, data, what learns."""
    run = folder.path
    folder.write_recipe(recipe)
    sweep_run(run)
    facts = {
        "versions": versions(),
        "seed": recipe.run.seed,
        "steps": plan.num_steps,
        "data": dataset.facts(),
        "lengths": dataset.length_histogram(),
        "learning": {group.name: {"parameters": group.size, "lr": group.lr} for group in groups},
    }
    folder.write(FACTS, json.dumps(facts, indent=2))
    folder.note(LOG)
    if dataset.bad_rows:
        folder.write(BAD_ROWS, list_of_bad_rows(dataset.bad_rows))
        say(f"{counted(len(dataset.bad_rows), 'bad row')} left out, listed in {run / BAD_ROWS}")
    learning = ", ".join(f"{group.name} {group.size:,} at {group.lr:g}" for group in groups)
    say(f"{len(dataset):,} conversations, {plan.num_steps:,} steps; parameters that learn: {learning}")


def _not_finite(what: str, step: int, dataset: Dataset, samples: np.ndarray) -> UserError:
    rows = [dataset.conversation(sample).origin for sample in samples]
    shown = ", ".join(rows[:4]) + (f" and {len(rows) - 4} more" if len(rows) > 4 else "")
    return UserError(f"the {what} at step {step + 1} ({shown}); lower optim.lr, or look at these rows")
