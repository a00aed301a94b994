"""SHIFT: see which features a classifier goes by, and take out those it should not go by."""

from headwater.shifts.ablate import Ablation as Ablation
from headwater.shifts.accuracy import Accuracies as Accuracies
from headwater.shifts.accuracy import Rate as Rate
from headwater.shifts.effects import ProbeEffects as ProbeEffects
from headwater.shifts.effects import probe_effects as probe_effects
from headwater.shifts.examples import Example as Example
from headwater.shifts.examples import Examples as Examples
from headwater.shifts.judging import Judged as Judged
from headwater.shifts.judging import judge as judge
from headwater.shifts.judgments import read_judgments as read_judgments
from headwater.shifts.judgments import write_judgments as write_judgments
from headwater.shifts.probe import Probe as Probe
from headwater.shifts.result import Shift as Shift
from headwater.shifts.run import shift as shift
from headwater.shifts.strongest import Candidates as Candidates
from headwater.shifts.strongest import candidates as candidates
