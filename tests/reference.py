"""The slow, obvious engine: sorts Python lists, loops over entries, and writes everything again after every step.

It shares no code with the real one but the random numbers and the counts per layer, and is held beside it in lockstep.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from regrow import latent as projections
from regrow.saliency import generator

DROP_AND_GROW = ("rigl", "set", "granet", "snfs", "dsr", "mest", "chase")
FIRST = ("momentum_buffer", "exp_avg", "grad_avg")
SECOND = ("exp_avg_sq", "square_avg")


class Entries:
    """Which entries of a tensor are the best legal ones; here any may be."""

    unit = 1  # entries that go as one

    def best(self, score, among, k, occupied=(), axis=-1):
        """The k best units of `among` beside those that are occupied, as indices of entries."""
        places, flat = self.places(score, axis), score.flatten().tolist()
        return set(sorted(among, key=lambda i: (-flat[i], places[i]))[:k])

    def rivals(self, size, active, axis=-1):
        """Index → (the size of its unit, the largest of what is removed and competes with it)."""
        flat = size.flatten()
        removed = [flat[i] for i in range(len(flat)) if i not in active]
        threshold = max(removed, default=torch.tensor(0.0))
        return {i: (flat[i], threshold) for i in range(len(flat))}

    def places(self, score, axis):
        """Index → where it comes once the axis is the last."""
        order = torch.arange(score.numel()).view(score.shape).movedim(axis, -1).flatten().tolist()
        return {i: place for place, i in enumerate(order)}


ANY = Entries()


class OfEveryM(Entries):
    """N:M: the first of every group before the second of any."""

    def __init__(self, m):
        self.m = m

    def best(self, score, among, k, occupied=(), axis=-1):
        places, flat = self.places(score, axis), score.flatten().tolist()
        by_group = {}
        for i in sorted(among, key=lambda i: (-flat[i], places[i])):
            by_group.setdefault(places[i] // self.m, []).append(i)
        level = {}
        for group, members in by_group.items():
            there = sum(places[i] // self.m == group for i in occupied)
            level |= {i: there + rank for rank, i in enumerate(members)}
        return set(sorted(among, key=lambda i: (level[i], -flat[i], places[i]))[:k])

    def rivals(self, size, active, axis=-1):
        places, flat = self.places(size, axis), size.flatten()
        largest = {}
        for i in set(places) - active:
            group = places[i] // self.m
            largest[group] = max(flat[i], largest.get(group, flat[i]))
        return {i: (flat[i], largest.get(place // self.m, torch.tensor(0.0))) for i, place in places.items()}


class Pairs(Entries):
    """Blocks of one output and two inputs."""

    unit = 2

    def best(self, score, among, k, occupied=(), axis=-1):
        places, flat = self.places(score, axis), score.flatten()
        pairs = {}
        for i in sorted(among, key=places.get):
            pairs.setdefault(places[i] // 2, []).append(i)
        mean = {pair: float((flat[a] + flat[b]) / 2) for pair, (a, b) in pairs.items()}
        return {i for pair in sorted(pairs, key=lambda pair: (-mean[pair], pair))[:k] for i in pairs[pair]}

    def rivals(self, size, active, axis=-1):
        places, flat = self.places(size, axis), size.flatten()
        at = {place: i for i, place in places.items()}
        mean = {i: (flat[at[p // 2 * 2]] + flat[at[p // 2 * 2 + 1]]) / 2 for i, p in places.items()}
        threshold = max((mean[i] for i in set(places) - active), default=torch.tensor(0.0))
        return {i: (mean[i], threshold) for i in places}


class Reference:
    """`params` are sparsified, `counts` says how many units of each stay at the end, `o` are the method's options,
    `rule` says which selections are legal, along which axis of which parameter."""

    def __init__(self, model, params, optimizer, counts, method, o, criterion, total_steps, seed=0, rule=ANY, axes=()):
        self.rule, self.axes = rule, dict(axes)
        self.model, self.params, self.optimizer, self.final = model, params, optimizer, counts
        self.method, self.o, self.criterion, self.total, self.seed = method, o, criterion, total_steps, seed
        self.step, self.update, self.explored = 0, 0, None
        self.forget()
        self.dense_grad = {}
        self.memory = {k: p.detach().clone() for k, p in params.items()}
        moving = ("iee", "static", "gap", *DROP_AND_GROW)
        start_random = o.get("start", "random") == "random" and method in moving
        self.active = {k: set(range(p.numel())) for k, p in params.items()}
        if not self.start():
            for i, (k, p) in enumerate(params.items()):
                noise = torch.rand(p.shape, generator=generator(seed, 0, i))
                score = noise if start_random else p.detach().abs()
                self.active[k] = self.best(k, score, range(p.numel()), self.target(k, -1))
        for k in params:
            self.write(k, self.active[k])
        if method == "mest":
            self.trains = {k: set(active) for k, active in self.active.items()}
            self.grow("zero", beyond=0.3)
        if method == "gap":
            self.trains = {k: set(active) for k, active in self.active.items()}
            self.fill(0)

    # -- schedule

    def length(self):
        if self.method == "iee":
            return self.o["h"] + (self.o["j"] if self.o.get("improve", True) else 0) + self.o["q"]
        if self.method == "acdc":
            return self.o["sparse"] + self.o["dense"]
        return self.o.get("interval") or self.o.get("h") or self.total + 1

    def start(self):
        """The step at which the first structure is taken."""
        if self.method == "acdc":
            return int(self.o["warm_up"] * self.total)
        return self.o.get("start_steps", 0)

    def begin(self):
        """The step at which the first cycle begins."""
        return max(self.start(), self.o.get("begin_at", 0))

    def until(self):
        default = 0.85 if self.method == "acdc" else 0.75
        return int(self.o.get("update_end", default) * self.total) if self.method != "oneshot" else self.o["h"]

    def updates(self):
        return 0 if self.method in ("static", "dense") else (self.until() - self.begin()) // self.length()

    def target(self, k, update):
        size, final = self.size(k), self.final[k]
        sizes = sum(map(self.size, self.params))
        sparsity = 1 - sum(self.final.values()) / sizes
        initial = {
            "gmp": self.o.get("initial_sparsity", 0.0),
            "granet": self.o.get("initial_sparsity", 0.0),
            "iee": self.o.get("ramp"),
        }.get(self.method)
        if self.method == "oneshot" and self.o["h"] and update < 0:
            return size
        if initial is None:
            return final
        progress = min((update + 1) / self.updates() / self.o.get("ramp_end", 1.0), 1.0)
        now = initial + (sparsity - initial) * (1 - (1 - progress) ** 3)
        return size - round(min(now / sparsity, 1.0) * (size - final))

    def churn(self, k, update):
        if self.method not in ("iee", "granet", "rigl", "set", "snfs", "dsr"):
            return 0
        t = self.begin() + update * self.length() + (self.o["h"] if self.method == "iee" else self.length())
        share = self.budget(t)
        target = len(self.active[k]) if self.method == "snfs" else self.target(k, update)
        return 0 if target == self.size(k) else int(share * target)

    def budget(self, step):
        return (0.5 if self.method == "granet" else 0.3) / 2 * (1 + math.cos(math.pi * step / self.until()))

    def size(self, k):
        """Of a parameter, in units."""
        return self.params[k].numel() // self.rule.unit

    # -- selection and values

    def best(self, name, score, among, k, occupied=()):
        return self.rule.best(score, among, k, occupied, self.axes.get(name, -1))

    def score(self, k, role, i):
        if self.method == "mest" and role == "prune":
            weight, grad = self.last[k]
            return (weight * grad).abs() if self.criterion == "taylor" else weight.abs() + 0.01 * grad.abs()
        if role == "grow" and self.method == "snfs":
            return (self.grad_sums[k] / max(self.steps_seen, 1)).abs()
        if role == "grow" and self.method in ("set", "dsr", "mest"):
            return torch.rand(self.params[k].shape, generator=generator(self.seed, self.step, i))
        if role == "grow" and self.method in ("rigl", "granet", "chase"):
            return self.dense_grad[k]
        if self.criterion == "taylor":
            return self.sums[k] / max(self.seen, 1)
        value = self.params[k].detach().clone().flatten()
        for j in range(len(value)):
            if j not in self.active[k] and self.explored is None:
                value[j] = self.memory[k].flatten()[j]
        return value.view_as(self.params[k]).abs()

    def write(self, k, new, init="zero", frozen=False, explored=False):
        """Gives every entry its value under the new structure, and mends its optimizer state."""
        p, memory, state = self.params[k], self.memory[k].view(-1), self.optimizer.state.get(self.params[k], {})
        live, before = p.detach().clone().view(-1), self.active[k] if self.explored is None else self.explored[k]
        trained_before = self.trained(k)
        p_flat = p.detach().view(-1)
        for j in range(p.numel()):
            if j in trained_before:
                old_memory, memory[j] = memory[j].clone(), live[j]
            else:
                old_memory = memory[j].clone()
            arrives = (j in new or explored) and j not in before
            if arrives:
                if init == "explored":
                    value = live[j]
                elif init == "mru":
                    value = old_memory
                else:
                    value = 0.0
                p_flat[j] = value
            elif j not in new and not explored:
                p_flat[j] = 0.0
        self.active[k] = set(new)
        self.frozen_now, self.exploring_now = frozen, explored
        trains_now = {
            j for j in range(p.numel()) if (explored and (j not in new or not frozen)) or (not explored and j in new)
        }
        for name, tensor in state.items():
            if name in FIRST and tensor is not None:
                for j in range(p.numel()):
                    if j not in trains_now or j not in trained_before:
                        tensor.view(-1)[j] = 0.0
            if name in SECOND:
                flat = tensor.view(-1)
                known = torch.tensor([flat[j].item() if j in trained_before else 0.0 for j in range(len(flat))])
                mean = known.view_as(tensor).sum(dtype=torch.float32) / max(1, int((known != 0).sum()))
                for j in trains_now - trained_before:
                    if flat[j] < 1e-3 * mean:
                        flat[j] = mean
        return trains_now

    def trained(self, k):
        if self.step == 0 and not hasattr(self, "trains"):
            return set(range(self.params[k].numel()))
        return self.trains.get(k, set(range(self.params[k].numel())))

    # -- a training step

    def train(self, loss_fn):
        if not hasattr(self, "trains"):
            self.trains = {k: set(self.active[k]) for k in self.params}
        self.optimizer.zero_grad()
        loss_fn(self.model).backward()
        grads = {k: p.grad.clone() for k, p in self.params.items()}
        self.dense_grad = {k: g.abs() for k, g in grads.items()}
        self.last = {k: (p.detach().clone(), grads[k]) for k, p in self.params.items()}
        for k, g in grads.items():
            self.grad_sums[k] += g
        self.steps_seen += 1
        if self.criterion == "taylor" and not self.start() <= self.step < self.begin():
            for k, p in self.params.items():
                self.sums[k] += (p.detach() * grads[k]).abs()
            self.seen += 1
        exploring = self.explored is not None and self.o.get("freeze", True)
        sparsified = {id(p) for p in self.params.values()}
        saved = {k: p.detach().clone() for k, p in self.params.items()}
        for p in self.model.parameters():
            if exploring and id(p) not in sparsified:
                p.grad = None
        for k, p in self.params.items():
            for j in range(p.numel()):
                if j not in self.trains[k]:
                    p.grad.view(-1)[j] = 0.0
        self.optimizer.step()
        for k, p in self.params.items():
            for j in range(p.numel()):
                if j not in self.trains[k]:
                    p.detach().view(-1)[j] = saved[k].view(-1)[j]
        self.step += 1
        self.cross()

    def cross(self):
        if self.params and 0 < self.step == self.start():
            for i, k in enumerate(self.params):
                best = self.best(k, self.score(k, "prune", i), self.active[k], self.target(k, -1))
                self.trains[k] = self.write(k, best)
            self.forget()
        if self.update >= self.updates():
            return
        position = self.step - self.begin() - self.update * self.length()
        if self.method == "iee":
            h, j = self.o["h"], self.o["j"] if self.o.get("improve", True) else 0
            if position == h:
                self.prune()
            if position == h + j:
                self.reactivate()
            if position == self.length():
                if self.buffers is not None:
                    for b, old in zip(self.model.buffers(), self.buffers, strict=True):
                        b.copy_(old)
                self.grow(self.o.get("grown_init", "mru"))
                self.update += 1
        elif self.method == "acdc":
            if position == self.o["sparse"]:
                for k, p in self.params.items():
                    self.trains[k] = self.write(k, set(range(p.numel())))
                self.forget()
            if position == self.length():
                self.prune()
                self.update += 1
        elif position == self.length():
            self.prune()
            if self.method == "gap" and self.update < self.updates() - 1:
                self.fill((self.update + 1) % self.o["parts"])
            elif self.method in ("mest", "chase"):
                if self.update < self.updates() - 1:
                    self.grow("zero", beyond=self.budget(self.step))
            elif self.method in DROP_AND_GROW:
                self.grow("zero")
            self.update += 1
            self.forget()

    def prune(self):
        scores = {k: self.score(k, "prune", i) for i, k in enumerate(self.params)}
        before = {k: len(a) if self.method == "snfs" else self.target(k, self.update) for k, a in self.active.items()}
        keep = {k: count - self.churn(k, self.update) for k, count in before.items()}
        if self.method in ("dsr", "chase"):
            first = {k: self.best(k, scores[k], among, 1) for k, among in self.active.items()}
            rest = {k: among - first[k] for k, among in self.active.items()}
            more = self.best_of_all(scores, rest, sum(keep.values()) - len(first))
            best = {k: first[k] | more[k] for k in first}
        else:
            best = {k: self.best(k, scores[k], self.active[k], n) for k, n in keep.items()}
        for k in self.params:
            self.trains[k] = self.write(k, best[k])
        if self.method == "iee" or self.method in ("gmp", "oneshot", "acdc"):
            self.forget()

    def best_of_all(self, scores, among, n):
        order = list(among)
        pool = [(-scores[k].flatten()[i].item(), order.index(k), i) for k in order for i in among[k]]
        best = sorted(pool)[:n]
        return {k: {i for _, which, i in best if order[which] == k} for k in order}

    def to_grow(self, scores, beyond):
        """What each parameter grows: its best, as many as it is given; or the best of all."""
        outside = {k: set(range(p.numel())) - self.active[k] for k, p in self.params.items()}
        missing = {}
        for k in self.params:
            target = self.target(k, self.update)
            missing[k] = min(self.size(k), target + int(beyond * target)) - len(self.active[k]) // self.rule.unit
        if self.method == "chase":
            return self.best_of_all(scores, outside, sum(missing.values()))
        if self.method in ("dsr", "snfs"):
            total, room = sum(missing.values()), {k: len(o) for k, o in outside.items()}
            if self.method == "dsr":
                weight = {k: float(len(a)) for k, a in self.active.items()}
            else:
                weight = {k: scores[k].flatten()[sorted(a)].double().mean().item() for k, a in self.active.items()}
            missing = shares(total, weight, room)
        return {k: self.best(k, scores[k], outside[k], missing[k], self.active[k]) for k in self.params}

    def reactivate(self):
        frozen = self.o.get("freeze", True) and self.o["q"] > 0
        everything = {k: set(range(p.numel())) for k, p in self.params.items()}
        for k in self.params:
            self.trains[k] = self.write(k, self.active[k], self.o.get("reactivate", "mru"), frozen, explored=True)
        self.explored = everything
        self.buffers = [b.clone() for b in self.model.buffers()] if frozen else None
        self.forget()

    def grow(self, init, beyond=0.0):
        grown = self.to_grow({k: self.score(k, "grow", i) for i, k in enumerate(self.params)}, beyond)
        for k in self.params:
            new = self.active[k] | grown[k]
            self.explored_was, before = self.explored, self.active[k]
            if self.explored is not None:
                self.explored = {**self.explored, k: set(before)}  # what counts as there already
            self.trains[k] = self.write(k, new, init)
        self.explored = None
        self.forget()

    def fill(self, part):
        ends = [len(self.params) * end // self.o["parts"] for end in (part, part + 1)]
        for k in list(self.params)[ends[0] : ends[1]]:
            self.trains[k] = self.write(k, set(range(self.params[k].numel())))
        self.forget()

    def forget(self):
        self.sums = {k: torch.zeros_like(p) for k, p in self.params.items()}
        self.grad_sums = {k: torch.zeros_like(p) for k, p in self.params.items()}
        self.seen = self.steps_seen = 0


def shares(total, weight, room):
    """Whole parts first, then one each to the largest remainders; again for what did not fit."""
    given = dict.fromkeys(weight, 0)
    while total:
        free = [k for k in weight if given[k] < room[k]]
        part = {k: total * (weight[k] / sum(weight[f] for f in free)) for k in free}
        whole = {k: min(int(part[k]), room[k] - given[k]) for k in free}
        if all(whole[k] == int(part[k]) for k in free):
            for k in sorted((k for k in free if given[k] + whole[k] < room[k]), key=lambda k: whole[k] - part[k]):
                whole[k] += sum(whole.values()) < total
        for k in free:
            given[k] += whole[k]
        total -= sum(whole.values())
    return given


class Straight:
    """The slow straight-through engine: latent weights beside the parameters, projected again after every step."""

    def __init__(self, model, params, optimizer, counts, o, criterion, total_steps, rule=ANY, axes=()):
        self.rule, self.axes = rule, dict(axes)
        self.model, self.params, self.optimizer, self.final, self.o = model, params, optimizer, counts, o
        self.criterion, self.total, self.step, self.update = criterion, total_steps, 0, 0
        self.latent = {k: p.detach().clone() for k, p in params.items()}
        self.started = not o.get("start_steps")
        self.active = {k: set(range(p.numel())) for k, p in params.items()}
        self.trained = {k: set(range(p.numel())) for k, p in params.items()}
        self.forget()
        if self.previews() and o["start"] == "random":  # what is not in use begins at zero
            for i, (k, p) in enumerate(params.items()):
                noise = torch.rand(p.shape, generator=generator(0, 0, i))
                self.active[k] = self.best(k, noise, self.active[k], counts[k])
                for i in range(p.numel()):
                    if i not in self.active[k]:
                        self.latent[k].view(-1)[i] = 0.0
                self.choose_candidates(k)
            self.project()
        elif self.started:
            self.select(0.0, {k: v.abs() for k, v in self.latent.items()})
            self.project()

    def best(self, name, score, among, k, occupied=()):
        return self.rule.best(score, among, k, occupied, self.axes.get(name, -1))

    def counts(self, progress):
        sizes = {k: p.numel() // self.rule.unit for k, p in self.params.items()}
        sparsity, ramp = 1 - sum(self.final.values()) / sum(sizes.values()), self.o["ramp"]
        if ramp is None:
            return self.final
        now = ramp + (sparsity - ramp) * (1 - (1 - min(progress / self.o["ramp_end"], 1.0)) ** 3)
        return {k: n - round(min(now / sparsity, 1.0) * (n - self.final[k])) for k, n in sizes.items()}

    def select(self, progress, scores):
        for k, count in self.counts(progress).items():
            self.active[k] = self.best(k, scores[k], range(scores[k].numel()), count)
            self.choose_candidates(k)
        self.forget()

    def choose_candidates(self, name):
        """What trains beside the active structure; what begins to has no momentum."""
        size, units = self.params[name].numel(), self.params[name].numel() // self.rule.unit
        sizes = {k: p.numel() // self.rule.unit for k, p in self.params.items()}
        target = 1 - sum(self.final.values()) / sum(sizes.values())
        progress = min(self.o.get("backward", 0.0) / target, 1.0)
        more = units - round(progress * (units - self.final[name])) - len(self.active[name]) // self.rule.unit
        scores, outside = self.latent[name].abs(), set(range(size)) - self.active[name]
        if self.o.get("candidates") == "random":
            scores = torch.rand(scores.shape, generator=generator(0, self.step, list(self.params).index(name)))
        before, now = self.trained[name], self.best(name, scores, outside, max(0, more), self.active[name])
        self.trained[name] = self.active[name] | now
        for key, tensor in self.optimizer.state.get(self.params[name], {}).items():
            if not self.o.get("backward") or tensor is None or key not in FIRST + SECOND:
                continue
            flat = tensor.view(-1)
            known = torch.tensor([flat[j].item() if j in before else 0.0 for j in range(size)]).view_as(tensor)
            mean = known.sum(dtype=torch.float32) / max(1, int((known != 0).sum()))
            for j in range(size):
                if key in FIRST and (j not in self.trained[name] or j not in before):
                    flat[j] = 0.0
                if key in SECOND and j in self.trained[name] - before and flat[j] < 1e-3 * mean:
                    flat[j] = mean

    def previews(self):
        """Whether it is IEE with a preview: the least of what is active goes, and the best of what is not comes."""
        return "h" in self.o

    def cycle(self):
        return self.o["h"] + self.o["j"] if self.previews() else self.o["every"]

    def until(self):
        return int(self.o["update_end"] * self.total)

    def exchange(self, position, scores):
        """What happens this many steps after the begin of an update."""
        for k, count in self.final.items():
            size = self.params[k].numel()
            if position == self.o["h"]:
                share = 0.3 / 2 * (1 + math.cos(math.pi * self.step / self.until()))
                drop = 0 if count == size // self.rule.unit else int(share * count)
                self.active[k] = self.best(k, scores[k], self.active[k], count - drop)
            if position == self.cycle():
                missing = count - len(self.active[k]) // self.rule.unit
                outside = set(range(size)) - self.active[k]
                self.active[k] = self.active[k] | self.best(k, scores[k], outside, missing, self.active[k])
            if position in (self.o["h"], self.cycle()):
                self.choose_candidates(k)

    def project(self):
        for k, p in self.params.items():
            latent, out, power = self.latent[k].view(-1), p.detach().view(-1), self.o["p"]
            # powers of single numbers and of many differ in their last bit, and so they do by where these lie
            among = sorted(self.active[k]) if self.rule is ANY else range(len(latent))
            size = torch.stack([latent[i].abs() for i in among])
            competing = self.rule.rivals(self.latent[k].abs(), self.active[k], self.axes.get(k, -1))
            of_unit, threshold = (torch.stack([competing[i][which] for i in among]) for which in (0, 1))
            if power == 1 and self.rule is ANY:
                size = (size - threshold).clamp(min=0)
            elif power == 3 and self.rule is ANY and projections.VECTOR_ROOTS and threshold[0] > 1e-10:
                t = float(threshold[0])  # a³ − b³ = d·((d + 3b/2)² + 3b²/4), d = a − b
                beyond = (size - t).clamp(min=0)
                cube = beyond * ((beyond + 1.5 * t).square() + 0.75 * t * t)
                size = torch.from_numpy(np.cbrt(cube.numpy()))
            elif not math.isinf(power):
                size = size * (1 - (threshold / of_unit) ** power).clamp(min=0) ** (1 / power)
            out.zero_()
            for i, value in zip(among, size, strict=True):
                out[i] = torch.copysign(value, latent[i]) if i in self.active[k] else 0.0

    def train(self, loss_fn):
        self.optimizer.zero_grad()
        loss_fn(self.model).backward()
        start, taylor = self.o.get("start_steps", 0), self.criterion == "taylor"
        updates = (self.until() - start) // self.cycle()
        live = self.started and self.update < updates
        spacing = self.o["shadow_every"] if self.previews() else 1
        due, gain = self.step % spacing == spacing - 1, self.o["scale"] * math.sqrt(spacing)
        for k, p in self.params.items():
            score = ((self.latent[k] if live else p.detach()) * p.grad).abs()
            score.view(-1)[sorted(set(range(p.numel())) - self.trained[k])] = 0.0
            self.sums[k] += score
            for i in range(p.numel()) if live else ():
                if i not in self.active[k]:
                    if not due:
                        p.grad.view(-1)[i] = 0.0
                    elif not self.normalizes():
                        p.grad.view(-1)[i] *= gain
                    p.grad.view(-1)[i] += self.o["pull"] * self.latent[k].view(-1)[i]
                if i not in self.trained[k]:
                    p.grad.view(-1)[i] = 0.0
            if live:
                p.detach().copy_(self.latent[k])
        self.optimizer.step()
        self.step += 1
        for k, p in self.params.items():
            new, old = p.detach().clone(), self.latent[k].view(-1)
            for i in range(p.numel()) if live and self.normalizes() else ():
                if i not in self.active[k]:
                    new.view(-1)[i] = torch.lerp(old[i], new.view(-1)[i], gain)
            for i in set(range(p.numel())) - self.trained[k] if live else ():
                new.view(-1)[i] = old[i]
            for i in set(range(p.numel())) - self.active[k] if self.started and not live else ():
                new.view(-1)[i] = 0.0
            self.latent[k] = new
        scores = self.sums if taylor else {k: v.abs() for k, v in self.latent.items()}
        if not self.started and self.step == start:
            self.started = True
            self.select(0.0, scores)
        elif live and self.previews():
            position = (self.step - start - 1) % self.cycle() + 1
            self.exchange(position, scores)
            self.update += position == self.cycle()
        elif live and (self.step - start) % self.cycle() == 0:
            self.update += 1
            self.select(self.update / updates, scores)
        if self.started:
            self.project()

    def normalizes(self):
        return "eps" in self.optimizer.param_groups[0]

    def forget(self):
        self.sums = {k: torch.zeros_like(p) for k, p in self.params.items()}
