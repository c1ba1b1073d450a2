"""A discrete model of the two persistent LSTM kernels and of the memory between their blocks.

It mirrors `arrive` and `wait` (`kernels/grid_barrier.py`), `forward_kernel`
(`kernels/forward_persistent.py`) and `backward_kernel` (`kernels/backward_persistent.py`). A block
is a generator that yields before each memory operation; `Grid.run` decides who goes next.

A store waits in its block's buffer and reaches L2 at a random later time, in any order; only a
releasing arrive (or the end of the block) forces it out. Counters live in L2. A load reads L2
when it runs: in both kernels what a block stores is computed from what it loaded, so no store can
overtake a load. One word stands for a slice, because the checks hold word by word. Each value is
its (step, writer), so a read of any other step is seen, stale or too new.
"""

import random
from collections import Counter
from itertools import product


class Block:
    """One thread block: its store buffer, its L1 and the operations that its kernel uses."""

    def __init__(self, grid):
        self.grid = grid
        self.pending = {}
        self.l1 = {}
        self.alive = True
        self.watching = None  # the counter it polls, and the value it saw last
        self.spins = 0
        self.spins_at_give_up = None
        self.step = 0
        self.speed = 1.0

    def expose(self):
        """Let one store of the buffer reach L2."""
        if self.pending:
            address = self.grid.rng.choice(list(self.pending))
            self.grid.memory[address] = self.pending.pop(address)

    def load(self, address, wanted, cached=False):
        """Read through L2 (`.cg`), or with `cached` perhaps what L1 kept from an earlier load."""
        yield
        if cached and address in self.l1 and self.grid.rng.random() < 0.7:
            got = self.l1[address]
        else:
            got = self.pending.get(address, self.grid.memory.get(address))
            if cached:
                self.l1[address] = got
        if got != wanted:
            too_new = got is not None and got > wanted
            self.grid.wrong["too new" if too_new else "stale"] += 1

    def store(self, address, value):
        yield
        self.l1.pop(address, None)
        self.pending[address] = value

    def arrive(self, counter, release=True):
        while release and self.pending:
            yield
            self.expose()
        yield
        self.grid.counters[counter] += 1

    def wait(self, counter, target):
        counters = self.grid.counters
        spins = 0
        limit = self.grid.cap if self.alive or self.grid.fault == "spins again" else 0
        yield
        while counters[counter] < target and spins < limit:
            self.watching = counter, counters[counter]
            yield
            spins += 1
        self.watching = None
        self.spins += spins
        if counters[counter] < target:
            self.grid.err = self.grid.err or self.grid.fault != "gives up in silence"
            if self.alive:
                self.spins_at_give_up = self.spins
            self.alive = False

    def idle(self):
        """Whether its next poll would see what the last one saw."""
        return (
            self.watching is not None and self.grid.counters[self.watching[0]] == self.watching[1]
        )


class Grid:
    """One launch under one random schedule.

    A patient grid polls only when something changed, until nothing else can run: a block then
    gives up only in a deadlock. An impatient one wastes polls, so a small cap runs out anywhere.
    """

    def __init__(self, seed, fault="", cap=60, patient=True, counters=()):
        self.rng = random.Random(seed)
        self.fault = fault
        self.cap = cap
        self.patient = patient
        self.memory = {}
        self.counters = Counter(counters)
        self.blocks = []
        self.err = False
        self.wrong = Counter()
        self.lead = 0  # of a backward block, in steps; counted for one group only
        self.turns = 0

    def add(self, kernel, *args):
        block = Block(self)
        block.code = kernel(block, *args, self.fault)
        self.blocks.append(block)

    def shuffled(self, items):
        items = list(items)
        self.rng.shuffle(items)
        return items

    def run(self, missing=0):
        """Run to the end. The last `missing` blocks are not resident until another one leaves."""
        rng = self.rng
        visibility = rng.choice((0.0, 0.05, 0.5))  # 0: only a release makes a store visible
        stay = rng.choice((0.0, 0.5, 0.95))
        speeds = rng.choice(((1.0,), (1.0, 1.0, 0.01), (0.01, 0.01, 1.0), (1.0, 0.1, 0.001)))
        resident = self.shuffled(self.blocks)
        queue = [resident.pop() for _ in range(missing)]
        block = None
        while resident:
            self.turns += 1
            if self.turns > 20_000:
                raise RuntimeError("the grid does not end")
            if self.turns % 64 == 1:
                for other in resident:
                    other.speed = rng.choice(speeds)
            if block is None or rng.random() >= stay:
                ready = [b for b in resident if not (self.patient and b.idle())] or resident
                block = rng.choices(ready, [b.speed for b in ready])[0]
            if next(block.code, "end") == "end":
                while block.pending:
                    block.expose()
                resident.remove(block)
                resident += [queue.pop()] if queue else []
                block = None
            elif self.patient and block.idle():
                block = None
            if resident and rng.random() < visibility:
                rng.choice(resident).expose()
        return self

    @property
    def faulty(self):
        """Whether the launch shows what a test of the kernel could see."""
        return self.err or bool(self.wrong)


def forward_block(block, p, n, steps, group, fault):
    """Slice p of h, step by step; one barrier a step because two slots alternate."""
    counter = "shared" if fault == "groups share a counter" else group
    slots = 1 if fault == "one slot" else 2

    def h(t, q):
        return "h", group, t % slots, q

    for t in range(steps):
        last = t + 1 == steps
        for q in block.grid.shuffled(range(n)):
            yield from block.load(h(t, q), (t, q), cached=fault == "through L1")
        if fault == "arrive before the store" and not last:
            yield from block.arrive(counter)
        yield from block.store(h(t + 1, p), (t + 1, p))
        if fault != "arrive before the store" and not last:
            yield from block.arrive(counter, release=fault != "relaxed arrive")
        yield from block.store(("gates", group, t, p), (t, p))
        if fault != "no wait" and not last:
            target = n if fault == "counter reset" else (t + 1) * n
            yield from block.wait(counter, target - (fault == "one arrival too few"))
            if fault == "counter reset" and p == 0:
                block.grid.counters[counter] = 0


def split_forward_block(block, part, piece, parts, pieces, steps, group, fault):
    """Block (part, piece): a range of h for the units of its piece, whose parts swap their sums."""
    me = piece * parts + part
    count = parts * pieces
    counter = "shared" if fault == "groups share a counter" else group
    sums_done = counter, "sums", 0 if fault == "pairs share a counter" else piece
    slots = 1 if fault == "one slot" else 2

    def h(t, q):
        return "h", group, t % slots, q

    for t in range(steps):
        last = t + 1 == steps
        for q in block.grid.shuffled(range(part * pieces, (part + 1) * pieces)):
            yield from block.load(h(t, q), (t, q))
        if fault == "arrive before the sums":
            yield from block.arrive(sums_done)
        others = [piece * parts + (part + j) % parts for j in range(1, parts)]
        for to in others:
            yield from block.store(("sum", group, me, to), (t, me))
        if fault != "arrive before the sums":
            yield from block.arrive(sums_done, release=fault != "relaxed arrive of the sums")
        if fault != "no wait for the sums":
            few = fault == "one arrival too few of the sums"
            yield from block.wait(sums_done, (t + 1) * parts - few)
        for other in others:
            cached = fault == "sums through L1"
            yield from block.load(("sum", group, other, me), (t, other), cached)
        if fault == "arrive before the store" and not last:
            yield from block.arrive(counter)
        yield from block.store(h(t + 1, me), (t + 1, me))
        if not last:
            if fault != "arrive before the store":
                yield from block.arrive(counter, release=fault != "relaxed arrive")
            if fault != "no wait":
                few = fault == "one arrival too few"
                yield from block.wait(counter, (t + 1) * count - few)


def backward_block(block, kb, nb, KB, NB, grouped, steps, group, fault):
    """Block (kb, nb) of the split backward pass; H = KB * NB, so it owns one unit."""
    unit = kb * NB + nb
    mine = nb if fault == "waits for its own columns" else unit // KB  # a range is H/NB = KB wide
    n1, n2 = (NB, KB) if grouped else (KB * NB, KB * NB)
    rows = "shared" if fault == "groups share a counter" else group
    one = ("1", rows, kb) if grouped else ("1", rows)
    one_counter = fault == "one counter for both parities"

    def two(columns, s):
        parity = 0 if one_counter else s % 2
        return ("2", rows, parity, columns) if grouped else ("2", rows, parity)

    def dg(s, u):
        return "dg", group, 0 if fault == "one slot of gradients" else s % 2, u

    def part(s, k, u):
        return "part", group, 0 if fault == "one partial-sum buffer" else s % 2, k, u

    for s in range(steps):
        block.step = s
        if s > 0:
            target = (s if one_counter else (s - 1) // 2 + 1) * n2
            if fault != "no wait (2)":
                few = fault == "one arrival too few (2)"
                yield from block.wait(two(mine, s - 1), target - few)
            for k in block.grid.shuffled(range(KB)):
                cached = fault == "partial sums through L1"
                yield from block.load(part(s - 1, k, unit), (s - 1, k), cached)
        if fault == "arrive (1) before the store":
            yield from block.arrive(one)
        yield from block.store(dg(s, unit), (s, unit))
        if fault != "arrive (1) before the store":
            yield from block.arrive(one, release=fault != "relaxed arrive (1)")
        if fault != "no wait (1)":
            target = n1 if fault == "counter reset" else (s + 1) * n1
            yield from block.wait(one, target - (fault == "one arrival too few (1)"))
            if fault == "counter reset" and nb == 0 and (grouped or kb == 0):
                block.grid.counters[one] = 0
        for u in block.grid.shuffled(range(kb * NB, (kb + 1) * NB)):
            yield from block.load(dg(s, u), (s, u), fault == "gradients through L1")
        block.grid.lead = max(block.grid.lead, s - min(b.step for b in block.grid.blocks))
        if fault == "arrive (2) before the store":
            yield from block.arrive(two(nb, s))
        for u in range(nb * KB, (nb + 1) * KB):
            yield from block.store(part(s, kb, u), (s, kb))
        if fault != "arrive (2) before the store":
            yield from block.arrive(two(nb, s), release=fault != "relaxed arrive (2)")
    block.step = steps


def run_forward(seed, n, steps, groups=1, fault="", missing=0, **options):
    grid = Grid(seed, fault, **options)
    for group, p in product(range(groups), range(n)):
        grid.memory["h", group, 0, p] = (0, p)
        grid.add(forward_block, p, n, steps, group)
    return grid.run(missing)


def run_split_forward(seed, parts, pieces, steps, groups=1, fault="", **options):
    grid = Grid(seed, fault, **options)
    for group, part, piece in product(range(groups), range(parts), range(pieces)):
        grid.memory["h", group, 0, piece * parts + part] = (0, piece * parts + part)
        grid.add(split_forward_block, part, piece, parts, pieces, steps, group)
    return grid.run()


def run_backward(seed, KB, NB, grouped, steps, groups=1, fault="", missing=0, **options):
    grid = Grid(seed, fault, **options)
    for group, kb, nb in product(range(groups), range(KB), range(NB)):
        grid.add(backward_block, kb, nb, KB, NB, grouped, steps, group)
    return grid.run(missing)
