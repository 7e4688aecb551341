"""An entropy coder: integers whose scales are predicted become words of 32 bits, and back.

Range asymmetric numeral systems (Duda 2013), many coders ("lanes") in turns on one stream of words
(Giesen 2014), all lanes of all streams in one tensor operation. Every scale belongs to a class, of
which four make an octave. A table of frequencies for each class tells how likely a magnitude is;
the sign, and low bits of large magnitudes, are coded as they are.

Shapes: S steps, L lanes, N streams, in the order of coding; W words of a stream.
"""

import torch
from torch import Tensor, nn

PRECISION = 14  # bits of a probability
TABLES = 32  # distributions: of scales from 1/32 to 8, in quarter octaves
CLASSES = TABLES + 64  # of scales: above 8, 1 to 16 low bits of a magnitude are coded as they are
SYMBOLS = 128  # magnitudes, without low bits; the last is an escape to any below 2 ** 30
ESCAPE_BITS = 30
LOWEST = 1 << 31  # a lane's state stays between here and 2 ** 63, by moving a word of 32 bits
STEPS_AT_ONCE = 16  # whose table entries are looked up together
STREAMS_AT_ONCE = 8  # whose words are gathered together
WORD = torch.tensor(32)  # bits; a tensor, since an operation on a few thousand elements takes as
# long as making a tensor of a Python number does


def low_bits(classes: Tensor) -> Tensor:
    """How many low bits of a magnitude are coded as they are. Any shape."""
    return ((classes - TABLES + 4) >> 2).clamp_(min=0)


def look_up(table: Tensor, index: Tensor) -> Tensor:
    """table[index], faster. Any shape."""
    return table.index_select(0, index.flatten()).view(index.shape)


class Coder(nn.Module):
    """Tables of frequencies, and coding with them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("frequency", torch.zeros(TABLES, SYMBOLS, dtype=torch.int32))

    # ------------------------------------------------ tables

    def count(self, classes: Tensor, magnitudes: Tensor) -> Tensor:
        """How often each symbol of each table comes up [TABLES, SYMBOLS]. Any shape, int64."""
        entry, _ = self.entries(classes, magnitudes)
        return entry.flatten().bincount(minlength=TABLES * SYMBOLS).view(TABLES, SYMBOLS)

    def set_tables(self, counts: Tensor, prior: Tensor):
        """Frequencies from counts, smoothed by probabilities [TABLES, SYMBOLS] that weigh as 200
        symbols; rarer symbols are left to the escape."""
        share = counts.double() + 200 * prior
        share = share / share.sum(1, keepdim=True) * (1 << PRECISION)
        frequency = torch.where(share < 0.4, 0, share.round().clamp_min(1)).long()
        frequency[:, -1] = frequency[:, -1].clamp_min(1)
        most = frequency.argmax(1, keepdim=True)
        missing = (1 << PRECISION) - frequency.sum(1, keepdim=True)
        frequency.scatter_add_(1, most, missing)  # never all of it: the escape has at least one
        self.frequency.copy_(frequency)

    def entries(self, classes: Tensor, integers: Tensor) -> tuple[Tensor, Tensor]:
        """What codes an integer of a class: its entry, as an index into the flattened tables, and
        its number of low bits. Any shape."""
        low = low_bits(classes)
        symbol = (integers.abs() >> low).clamp_(max=SYMBOLS - 1)
        return symbol.add_(classes, alpha=SYMBOLS).add_(low, alpha=-4 * SYMBOLS), low

    def escapes(self) -> tuple[Tensor, Tensor]:
        """For each entry, the one that codes it, and the least number of low bits: ESCAPE_BITS
        where that is the escape."""
        entry = torch.arange(TABLES * SYMBOLS)
        escaped = (self.frequency.flatten() == 0) | (entry % SYMBOLS == SYMBOLS - 1)
        return torch.where(escaped, entry | (SYMBOLS - 1), entry), ESCAPE_BITS * escaped

    def starts(self) -> Tensor:
        """Of each entry, the first of its slots among the 2 ** PRECISION of its table."""
        return (self.frequency.cumsum(1) - self.frequency).flatten()

    def cost(self, classes: Tensor, integers: Tensor) -> Tensor:
        """Bits that coding each of the integers takes, less the states at the end. Any shape."""
        entry, low = self.entries(classes.int(), integers)
        coded, least = self.escapes()
        rarity = (PRECISION - self.frequency.flatten().clamp_min(1).log2())[coded]
        return rarity[entry] + torch.maximum(low, least[entry]) + (integers != 0)

    # ------------------------------------------------ coding

    def encode(self, classes: Tensor, integers: Tensor) -> list[Tensor]:
        """[S, L, N] -> for each stream words [W], int64: the lanes' states, then what they take up
        one after the other."""
        coded, least = self.escapes()
        frequency, start = self.frequency.flatten()[coded].long(), self.starts()[coded]
        table = least | (frequency << 16) | (start << 32)
        state = torch.full(classes.shape[1:], LOWEST)
        # What is coded last is decoded first: this goes backwards and fills rows from the end.
        # A step moves up to two words: with an escape, one before and one after the low bits.
        rows = 2 * len(classes), *state.shape
        words, moved = torch.empty(rows, dtype=torch.int32), torch.empty(rows, dtype=torch.bool)
        free = list(zip(words, moved))

        def move_word(bound: Tensor | int):
            """Of states at or above their bound."""
            word, full = free.pop()
            word.copy_(state)  # the low 32 bits
            state.bitwise_right_shift_(torch.ge(state, bound, out=full) * WORD)

        pieces = zip(classes.split(STEPS_AT_ONCE)[::-1], integers.split(STEPS_AT_ONCE)[::-1])
        for classes, integers in pieces:
            entry, low = self.entries(classes.int(), integers)
            looked_up = look_up(table, entry)
            least = looked_up & 31
            low = torch.maximum(low, least.int())
            magnitude, sign_bit = integers.abs(), 1 << low
            plain = torch.where(integers < 0, sign_bit, 0).add_(magnitude & (sign_bit - 1)).long()
            width = magnitude.clamp_(max=1).add_(low).long()  # of `plain`: zero has no sign
            frequency, start = (looked_up >> 16) & 0xFFFF, looked_up >> 32
            bound = frequency << (63 - PRECISION - width)
            escapes = least.flatten(1).any(1).tolist()
            if any(escapes):
                bound = torch.where(least > 0, 1 << (63 - width), bound)
            columns = bound, width, plain, frequency, (1 << PRECISION) - frequency, start
            for step, column in reversed(list(enumerate(zip(*columns)))):
                bound, width, plain, frequency, others, start = column
                move_word(bound)
                state.bitwise_left_shift_(width).add_(plain)
                if escapes[step]:
                    bound, none = frequency << (63 - PRECISION), 2 ** 63 - 1
                    move_word(torch.where(least[step] > 0, bound, none))
                quotient = state.div(frequency, rounding_mode="trunc")
                state.addcmul_(quotient, others).add_(start)
        states, streams = torch.cat([state >> 32, state]).int().T, []
        words, moved = (x[len(free):].permute(2, 0, 1) for x in (words, moved))
        for few in zip(words.split(STREAMS_AT_ONCE), moved.split(STREAMS_AT_ONCE)):
            streams += [words[moved] for words, moved in zip(*(x.contiguous() for x in few))]
        return [torch.cat(pair).long() & 0xFFFFFFFF for pair in zip(states, streams)]

    def decoder(self, streams: list[Tensor], lanes: int):
        """Inverse of `encode`: a function from classes [S * L, N] to the integers that come next.
        It raises IndexError where the words come to an end."""
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
                rest = state >> low
                magnitude = symbol.sub_(rest).bitwise_left_shift_(low).add_(state)  # with low bits
                signed = magnitude.clamp(max=1)
                magnitudes.append(magnitude)
                signs.append(rest & signed)
                state = rest.bitwise_right_shift_(signed)
                take_words(state < lowest)
            negative = torch.cat(signs).neg_()
            return torch.cat(magnitudes).bitwise_xor_(negative).sub_(negative)

        return decode
