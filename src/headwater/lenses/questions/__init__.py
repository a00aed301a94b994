"""What is asked of a lens: jumps between layers, closeness to both ends, rarity of tokens."""

from headwater.lenses.questions.close import Close as Close
from headwater.lenses.questions.close import close as close
from headwater.lenses.questions.jumps import Jump as Jump
from headwater.lenses.questions.jumps import Jumps as Jumps
from headwater.lenses.questions.jumps import jumps as jumps
from headwater.lenses.questions.rarity import rarity as rarity
from headwater.lenses.questions.rarity_result import Rarity as Rarity
