"""What a lens adds up over a corpus, in memory that does not grow with it."""

from headwater.lenses.tally.tally import Bounds as Bounds
from headwater.lenses.tally.tally import Tally as Tally
