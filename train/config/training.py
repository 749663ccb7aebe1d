"""The optimizer, its schedule, and what is kept, watched and stopped on the way."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from train.config.section import Duration, NonNegative, Positive, Probability, Section

Optimizer = Literal[
    "paged_adamw_32bit", "paged_adamw_8bit", "adamw_32bit", "adamw_8bit", "adamw_torch", "adamw_torch_fused",
    "paged_lion_32bit", "paged_lion_8bit", "lion_32bit", "lion_8bit",
]  # fmt: skip


class Train(Section):
    """The optimizer and its schedule."""

    learning_rate: Positive = 1e-4
    """Peak learning rate."""
    lr_scheduler_type: Literal["constant", "cosine", "linear"] = "constant"
    """Shape after the warm-up; cosine and linear end at 0."""
    warmup_ratio: Probability = 0.03
    """Share of the steps in which the learning rate rises linearly from 0."""
    max_grad_norm: Positive = 0.3
    """Gradients are scaled down to this norm."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay."""
    optim: Optimizer = "paged_adamw_32bit"
    """Optimizer; paging only happens on a GPU, and `lion` is lion_32bit."""
    adam_beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Decay of the first moment."""
    adam_beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    """Decay of the second moment; of Lion's only one (its paper takes 0.99)."""
    adam_epsilon: Positive = 1e-8
    """Added to the denominator (Lion has none)."""
    per_device_train_batch_size: PositiveInt = 1
    """Rows in a micro-batch."""
    gradient_accumulation_steps: PositiveInt = 16
    """Micro-batches in a step, on each process."""
    gradient_checkpointing: bool = True
    """Keep only each layer's input and compute the rest again: much less memory, a third more compute."""
    num_train_epochs: Positive = 3.0
    """Passes over the data; used where max_steps is null."""
    max_steps: PositiveInt | None = None
    """Number of steps, whatever the size of the data."""
    max_tokens: PositiveInt | None = None
    """Stop at the step that reaches so many tokens, if that comes first; the learning rate ends there too."""
    max_time: Duration | None = None
    """Stop after this long in one launch, saved, to be resumed: 90m, 8h, 1h30m, 2d. Exit code 75."""
    seed: int = 0
    """Seed of initialization, separators, order and dropout."""
    full_determinism: bool = True
    """On a GPU, take kernels that give the same bits each time, also where others are faster."""
    neftune_noise_alpha: Positive | None = None
    """NEFTune: noise on the embeddings of trained documents, alpha / sqrt(tokens x width); null: none."""
    context_parallel_size: PositiveInt = 1
    """Processes that share each row, for rows longer than one device holds; it divides their number."""
    save_steps: PositiveInt = 100
    """Steps between checkpoints."""
    save_minutes: Positive | None = None
    """Also save when the newest checkpoint is so many minutes old."""
    save_total_limit: PositiveInt = 3
    """Checkpoints that are kept, the newest ones; the one with the best evaluation is kept beside them."""
    eval_steps: PositiveInt | None = None
    """Steps between evaluations on the held-out records; null: only at the end."""
    eval_contexts: tuple[PositiveInt, ...] = ()
    """Also measure the perplexity of the same held-out tokens under so many tokens of context, such as [2048, 8192]."""
    load_best_model_at_end: bool = False
    """Publish the adapter of the best evaluation instead of the last step's."""
    early_stopping_patience: PositiveInt | None = None
    """Stop after so many evaluations without a better one; null: never."""
    early_stopping_threshold: NonNegative = 0.0
    """A better evaluation is lower by more than this."""
    on_non_finite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is not finite: stop, or leave the step out (10 in a row at most). Details: failures/."""
    loss_spike: Positive | None = None
    """Watch for losses above the median of the last 50 by more than this many times their median distance from it."""
    on_loss_spike: Literal["warn", "stop"] = "warn"
    """What to do about one. Details are in failures/; a stop leaves the checkpoint of before the spike the newest."""
    stall_minutes: Positive = 30.0
    """A process that waits so long for another ends the run, and names the one that stalled."""

    @field_validator("optim", mode="before")
    @classmethod
    def _lion_for_short(cls, value: Any) -> Any:
        return "lion_32bit" if value == "lion" else value

    @field_validator("eval_contexts")
    @classmethod
    def _have_something_before(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if min(value, default=2) < 2:
            raise ValueError("a context has at least 2 tokens: one to score, and one before it")
        return value

    @model_validator(mode="after")
    def _evaluations_that_decide(self) -> Train:
        if self.eval_steps is None and (self.early_stopping_patience or self.load_best_model_at_end):
            raise ValueError(
                "early_stopping_patience and load_best_model_at_end compare evaluations: give eval_steps too"
            )
        return self
