"""What a decode worker has of its placements: prompts before their first draw, sequences that run, and how they leave;
pure. Blocks that a plan in flight uses come back when it is applied, those that a peer may write when it has let go."""

from bisect import insort

from ..engine.block_pool import BlockPool
from ..wire.messages import Declined, Failed, Reserved, TokenRow
from .effects import Effects, Receive
from .prompt import Prompt, PromptState
from .quarantine import Quarantine
from .reservations import Reservations
from .sequence import Sequence


class Placements:
    def __init__(self, pool: BlockPool, reservations: Reservations) -> None:
        self._pool, self._reservations = pool, reservations
        self.prompts: dict[int, Prompt] = {}
        """By placement, oldest first."""
        self.running: list[Sequence] = []
        """Oldest first."""
        self.quarantine = Quarantine(pool)
        self.effects = Effects()
        """Since they were last taken."""
        self.now = 0.0
        """Of the last plan."""
        self.num_preemptions = 0

    def take_effects(self) -> Effects:
        """What is to be done since the last call."""
        effects, self.effects = self.effects, Effects()
        return effects

    @property
    def ids(self) -> list[int]:
        """Those that were accepted and have not ended."""
        return list(dict.fromkeys([*(s.placement for s in self.running), *self.prompts]))

    @property
    def computes_prompts(self) -> bool:
        """In the next step, if there is room."""
        return any(prompt.state is PromptState.PREFILLING for prompt in self.prompts.values())

    def prompt_of(self, transfer_id: str) -> Prompt | None:
        """None for a transfer that is not known any more."""
        return next((prompt for prompt in self.prompts.values() if prompt.transfer_id == transfer_id), None)

    def add(self, prompt: Prompt) -> None:
        """It is reserved."""
        self.prompts[prompt.placement] = prompt
        if prompt.transfer_id:
            blocks = prompt.blocks_to_receive(self._pool.block_size)
            self.effects.receive.append(Receive(prompt.transfer_id, blocks))
        self.effects.messages.append(Reserved(prompt.placement, prompt.paged.num_cached, prompt.transfer_id))

    def start(self, prompt: Prompt, sequences: list[Sequence]) -> None:
        """Those begin with the prompt's last row, if there are any."""
        if not sequences:
            return
        del self.prompts[prompt.placement]
        self.effects.admit += prompt.seeds()
        for sequence in sequences:
            insort(self.running, sequence, key=lambda item: item.age)

    def complete(self, prompt: Prompt) -> list[TokenRow]:
        """The ends of its choices, if no token is wanted and the prompt is computed; `land` gives its blocks back."""
        rows = prompt.last_rows()
        if rows:
            del self.prompts[prompt.placement]
            prompt.ended = True
        return rows

    def fail(self, placement: int, error: str) -> None:
        """It can never be served: with it go all its choices."""
        self.effects.messages.append(Failed(placement, error, retriable=False))
        self.stop(placement, None)

    def stop(self, placement: int, choice: int | None) -> None:
        """Ends all of the placement, or one choice, wherever it is. Not while a plan is being applied."""
        prompt = self.prompts.get(placement)
        if prompt is not None:
            self._cancel_prompt(prompt, choice)
        for sequence in [s for s in self.running if s.placement == placement]:
            if choice is None or choice == sequence.choice:
                self.end(sequence)
                self.land(sequence)

    def give_up(self, item: Prompt | Sequence, reason: str, *, preempted: bool) -> None:
        """Back to the router's queue. Only while no plan in flight uses it."""
        self.num_preemptions += preempted
        choice = item.choice if isinstance(item, Sequence) else None
        self.effects.messages.append(Declined(item.placement, reason, choice, preempted))
        if isinstance(item, Sequence):
            self.end(item)
            self.land(item)
        else:
            self._abandon(item)
            self.drop(item)

    def drop(self, prompt: Prompt) -> None:
        """It ends before its first draw."""
        del self.prompts[prompt.placement]
        prompt.ended = True
        self.land(prompt)

    def end(self, sequence: Sequence) -> None:
        """It is planned no more; `land` gives its blocks back."""
        self.running.remove(sequence)
        sequence.ended = True

    def land(self, item: Prompt | Sequence) -> None:
        """What was put off because a plan in flight used the item's blocks, if none does any more."""
        if item.pending:
            return
        if item.ended:
            self._release(item)
        elif item.condemned:
            self.give_up(item, "preempted: older sequences need its blocks", preempted=True)

    def _cancel_prompt(self, prompt: Prompt, choice: int | None) -> None:
        if choice is None or prompt.seq_ids.keys() == {choice}:
            self._abandon(prompt)
            self.drop(prompt)
        elif choice in prompt.seq_ids:
            del prompt.seq_ids[choice]
            self._reservations.num_seqs -= 1
            self._pool.free([prompt.spares.pop()])

    def _abandon(self, prompt: Prompt) -> None:
        if prompt.state not in (PromptState.RESERVED, PromptState.RECEIVING):
            return
        self.effects.abandon.append(prompt.transfer_id)
        receive = self.effects.receive
        self.effects.receive = [one for one in receive if one.transfer_id != prompt.transfer_id]

    def _release(self, item: Prompt | Sequence) -> None:
        if isinstance(item, Sequence):
            self._pool.free(item.table if item.source is None else [*item.table, item.source])
            self.effects.retire.append(item.seq_id)
            self._reservations.num_seqs -= 1
        else:
            self._pool.free(self._unclaimed_blocks(item))
            self._reservations.num_seqs -= len(item.seq_ids)

    def _unclaimed_blocks(self, prompt: Prompt) -> list[int]:
        """All that nobody else writes; the others go into quarantine."""
        blocks = prompt.paged.table + prompt.spares
        if not prompt.claimed:
            return blocks
        claimed = prompt.blocks_to_receive(self._pool.block_size)
        self.quarantine.put(prompt.transfer_id, claimed, self.now)
        return [block for block in blocks if block not in set(claimed)]
