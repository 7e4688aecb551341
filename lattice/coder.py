"""An entropy coder: integers whose scales are predicted become words of 32 bits, and back.

    streams = coder.encode(classes, integers)
    decode = coder.decoder(streams, lanes);   integers = decode(classes)

The method is range asymmetric numeral systems (rANS; Duda 2013). All that was coded so far is one
large integer, the state. A table gives symbol s the slots `start` to `start + f - 1` out of
2 ** 14, so that its probability is f / 2 ** 14. Coding s takes

    state -> (state // f << 14) + start + state % f

which multiplies the state by about 2 ** 14 / f: it grows by as many bits as the symbol carries
information. Decoding finds the symbol by its slot, the lowest 14 bits, and undoes that step:

    state -> f * (state >> 14) + slot - start

A stack, not a queue: what is coded last is decoded first, so the encoder goes backwards. A state
that would grow beyond 2 ** 63 first moves its lowest 32 bits, a word, to the stream; the decoder
takes a word back whenever the state falls below 2 ** 31. A loop over single symbols would be too
slow in Python: many states ("lanes") take turns on one stream (Giesen 2014), and all lanes of all
streams are coded in one tensor operation.

A symbol is an integer's magnitude. Its table depends on its class, the predicted scale in quarter
octaves. Large scales, whose lowest bits are as good as random, share the last tables: those bits
are appended to the state as they are, and so is the sign. Magnitudes too large for a table, or too
rare, are an escape symbol and 30 bits.

Shapes: S steps, L lanes, N streams, in the order of coding; W words of a stream.
"""

import torch
from torch import Tensor, nn

PRECISION = 14  # bits of a probability
TABLES = 32  # for scales from 1/32 to 8, in quarter octaves
CLASSES = TABLES + 64  # of scales: above 8, 1 to 16 low bits of a magnitude are appended
SYMBOLS = 128  # magnitudes without low bits; the last is the escape
ESCAPE_BITS = 30
LOWEST = 1 << 31  # a state stays between here and 2 ** 63
STEPS_AT_ONCE = 16  # whose table entries are looked up together
STREAMS_AT_ONCE = 8  # whose words are gathered together
WORD = torch.tensor(32)  # bits. Many constants here are tensors: on a few thousand elements, an
# operation takes no longer than making a tensor of a Python number.


def low_bits(classes: Tensor) -> Tensor:
    """How many low bits of a magnitude are appended as they are. Any shape."""
    return ((classes - TABLES + 4) >> 2).clamp_(min=0)


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """table[index], faster. Any shape."""
    return table.index_select(0, index.flatten()).view(index.shape)


class Coder(nn.Module):
    """The tables, `frequency` [TABLES, SYMBOLS], and coding with them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("frequency", torch.zeros(TABLES, SYMBOLS, dtype=torch.int32))

    def encode(self, classes: Tensor, integers: Tensor) -> list[Tensor]:
        """Code integers below 2 ** 30 [S, L, N] of the given classes.

        Returns for each stream its words [W], int64: the final states, then the words that lanes
        take in turns while decoding.
        """
        coded_as, extra = self.escapes()
        frequency, start = self.frequency.flatten()[coded_as].long(), self.starts()[coded_as]
        table = extra | (frequency << 16) | (start << 32)  # one look-up for all three
        state = torch.full(classes.shape[1:], LOWEST)
        # In a step a lane moves up to two words: an escape, one before and one after its 30 bits.
        # They fill rows from the end, since decoding takes them the other way round.
        rows = 2 * len(classes), *state.shape
        words, moved = torch.empty(rows, dtype=torch.int32), torch.empty(rows, dtype=torch.bool)
        free = list(zip(words, moved))

        def move_word(bound: Tensor | int):
            """Make room in the states at or above their bound."""
            word, full = free.pop()
            word.copy_(state)  # the lowest 32 bits
            state.bitwise_right_shift_(torch.ge(state, bound, out=full) * WORD)

        pieces = zip(classes.split(STEPS_AT_ONCE)[::-1], integers.split(STEPS_AT_ONCE)[::-1])
        for classes, integers in pieces:
            entry, low = self.entries(classes.int(), integers)
            looked_up = look_up(table, entry)
            extra, frequency, start = looked_up & 31, (looked_up >> 16) & 0xFFFF, looked_up >> 32
            low = torch.maximum(low, extra.int())
            magnitude, sign_bit = integers.abs(), 1 << low
            plain = torch.where(integers < 0, sign_bit, 0).add_(magnitude & (sign_bit - 1)).long()
            width = magnitude.clamp_(max=1).add_(low).long()  # bits of `plain`: zero has no sign
            bound = frequency << (63 - PRECISION - width)
            escapes = extra.flatten(1).any(1).tolist()
            if any(escapes):
                bound = torch.where(extra > 0, 1 << (63 - width), bound)
            columns = bound, width, plain, frequency, (1 << PRECISION) - frequency, start
            for step, column in reversed(list(enumerate(zip(*columns)))):
                bound, width, plain, frequency, others, start = column
                move_word(bound)
                state.bitwise_left_shift_(width).add_(plain)
                if escapes[step]:
                    bound, none = frequency << (63 - PRECISION), 2 ** 63 - 1
                    move_word(torch.where(extra[step] > 0, bound, none))
                # The step of the docstring, since state % f is state - quotient * f.
                quotient = state.div(frequency, rounding_mode="trunc")
                state.addcmul_(quotient, others).add_(start)
        states, streams = torch.cat([state >> 32, state]).int().T, []
        words, moved = (x[len(free):].permute(2, 0, 1) for x in (words, moved))
        for few in zip(words.split(STREAMS_AT_ONCE), moved.split(STREAMS_AT_ONCE)):
            streams += [words[moved] for words, moved in zip(*(x.contiguous() for x in few))]
        return [torch.cat(pair).long() & 0xFFFFFFFF for pair in zip(states, streams)]

    def decoder(self, streams: list[Tensor], lanes: int):
        """Inverse of `encode`: a function that takes the classes of the next S steps [S * L, N] and
        returns their integers. It raises IndexError where the words come to an end.

        Each stream has at least its 2 * lanes words of states.
        """
        position = torch.tensor([0] + [len(stream) for stream in streams]).cumsum(0)[:-1]
        position = position + 2 * lanes - 1  # of the last word that is taken, in each stream
        stream = torch.cat([*streams, torch.zeros(lanes, dtype=torch.long)])
        high, lower = torch.stack([words[:2 * lanes] for words in streams], 1).split(lanes)
        state = (high << 32) + lower
        frequency, start = self.frequency.flatten().long(), self.starts()
        entry = torch.arange(len(frequency)).repeat_interleave(frequency)  # of each table's slots
        slot = torch.arange(TABLES << PRECISION) % (1 << PRECISION)
        table = ((entry % SYMBOLS) << 32) | (frequency[entry] << 16) | (slot - start[entry])
        low_of = low_bits(torch.arange(CLASSES))
        first_of = (torch.arange(CLASSES) - 4 * low_of) << PRECISION  # slot of a class's table
        precision, slots, lowest, sixteen, below = map(  # tensors as WORD is
            torch.tensor, (PRECISION, (1 << PRECISION) - 1, LOWEST, 16, (1 << 16) - 1))

        def take_words(lacking: Tensor):
            """One word for each state of `lacking` [L, N], in the order of lanes."""
            nonlocal state, position
            rank = lacking.cumsum(0).add_(position)
            state = torch.where(lacking, (state << WORD).add_(look_up(stream, rank)), state)
            position = rank[-1]

        def decode(classes: Tensor) -> Tensor:
            nonlocal state
            lows, firsts = look_up(low_of, classes), look_up(first_of, classes)
            magnitudes, signs = [], []
            for low, first in zip(lows.split(lanes), firsts.split(lanes)):
                looked_up = look_up(table, (state & slots).add_(first))
                symbol, offset = looked_up >> WORD, looked_up & below
                frequency = looked_up.bitwise_right_shift_(sixteen).bitwise_and_(below)
                state = (state >> precision).mul_(frequency).add_(offset)
                if symbol.max().item() == SYMBOLS - 1:
                    escape = symbol == SYMBOLS - 1
                    take_words(escape & (state < lowest))
                    symbol = symbol.masked_fill(escape, 0)
                    low = low.masked_fill(escape, ESCAPE_BITS)
                # The magnitude is the symbol, then the state's lowest `low` bits; then its sign.
                rest = state >> low
                magnitude = symbol.sub_(rest).bitwise_left_shift_(low).add_(state)
                signed = magnitude.clamp(max=1)
                magnitudes.append(magnitude)
                signs.append(rest & signed)
                state = rest.bitwise_right_shift_(signed)
                take_words(state < lowest)
            negative = torch.cat(signs).neg_()
            return torch.cat(magnitudes).bitwise_xor_(negative).sub_(negative)

        return decode

    def cost(self, classes: Tensor, integers: Tensor) -> Tensor:
        """Bits that each integer takes, without the final states. Any shape."""
        entry, low = self.entries(classes.int(), integers)
        coded_as, extra = self.escapes()
        bits = (PRECISION - self.frequency.flatten().clamp_min(1).log2())[coded_as]
        return bits[entry] + torch.maximum(low, extra[entry]) + (integers != 0)

    # ------------------------------------------------ tables

    def set_tables(self, counts: Tensor, prior: Tensor):
        """Set the frequencies from counts, smoothed by probabilities that weigh as much as 200
        symbols; symbols rarer than 0.4 slots are left to the escape. [TABLES, SYMBOLS] each"""
        share = counts.double() + 200 * prior
        share = share / share.sum(1, keepdim=True) * (1 << PRECISION)
        frequency = torch.where(share < 0.4, 0, share.round().clamp_min(1)).long()
        frequency[:, -1] = frequency[:, -1].clamp_min(1)
        most = frequency.argmax(1, keepdim=True)
        missing = (1 << PRECISION) - frequency.sum(1, keepdim=True)
        frequency.scatter_add_(1, most, missing)  # rounding errors go to the most frequent one
        self.frequency.copy_(frequency)

    def entries(self, classes: Tensor, integers: Tensor) -> tuple[Tensor, Tensor]:
        """The entry that codes an integer of a class, as an index into the flattened tables, and
        its number of low bits. Any shape."""
        low = low_bits(classes)
        symbol = (integers.abs() >> low).clamp_(max=SYMBOLS - 1)
        return symbol.add_(classes, alpha=SYMBOLS).add_(low, alpha=-4 * SYMBOLS), low

    def escapes(self) -> tuple[Tensor, Tensor]:
        """For each entry of the flattened tables, the entry that it is coded as, itself or its
        table's escape; and the bits that are appended, ESCAPE_BITS after an escape, else 0."""
        entry = torch.arange(TABLES * SYMBOLS)
        escaped = (self.frequency.flatten() == 0) | (entry % SYMBOLS == SYMBOLS - 1)
        return torch.where(escaped, entry | (SYMBOLS - 1), entry), ESCAPE_BITS * escaped

    def starts(self) -> Tensor:
        """The first slot of each entry of the flattened tables, among those of its table."""
        return (self.frequency.cumsum(1) - self.frequency).flatten()
