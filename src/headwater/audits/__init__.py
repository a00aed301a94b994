"""The audit: estimates against exact effects on a sample, with intervals, in words."""

from headwater.audits.compare import audit_scores as audit_scores
from headwater.audits.report import Audit as Audit
from headwater.audits.report import AuditRow as AuditRow
from headwater.audits.sampling import AuditSample as AuditSample
from headwater.audits.words import Statistic as Statistic
