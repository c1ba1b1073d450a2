"""What a run measured, as a table for the terminal and as one self-contained HTML page."""

from typing import TYPE_CHECKING

from ulmfit_fast.system.lazy import lazy_attributes

if TYPE_CHECKING:
    from ulmfit_fast.report.explanations import Explanation as Explanation
    from ulmfit_fast.report.explanations import Explanations as Explanations
    from ulmfit_fast.report.explanations import TokenScore as TokenScore
    from ulmfit_fast.report.numbers import Accuracy as Accuracy
    from ulmfit_fast.report.numbers import ClassCount as ClassCount
    from ulmfit_fast.report.numbers import Confusion as Confusion
    from ulmfit_fast.report.numbers import CorpusSize as CorpusSize
    from ulmfit_fast.report.numbers import DataRecord as DataRecord
    from ulmfit_fast.report.numbers import EpochRecord as EpochRecord
    from ulmfit_fast.report.numbers import Example as Example
    from ulmfit_fast.report.numbers import Json as Json
    from ulmfit_fast.report.numbers import LossPoint as LossPoint
    from ulmfit_fast.report.numbers import LrTrace as LrTrace
    from ulmfit_fast.report.numbers import Metrics as Metrics
    from ulmfit_fast.report.numbers import Perplexity as Perplexity
    from ulmfit_fast.report.numbers import PlainExample as PlainExample
    from ulmfit_fast.report.numbers import RunRecord as RunRecord
    from ulmfit_fast.report.numbers import Score as Score
    from ulmfit_fast.report.numbers import StageRecord as StageRecord
    from ulmfit_fast.report.numbers import WordScore as WordScore
    from ulmfit_fast.report.numbers import aligned_table as aligned_table
    from ulmfit_fast.report.numbers import format_score as format_score
    from ulmfit_fast.report.numbers import format_table as format_table
    from ulmfit_fast.report.numbers import label_counts as label_counts
    from ulmfit_fast.report.numbers import scores as scores
    from ulmfit_fast.report.page import write_explanations as write_explanations
    from ulmfit_fast.report.page import write_report as write_report
    from ulmfit_fast.report.page import write_run_report as write_run_report
else:
    _NUMBERS = """
        Accuracy ClassCount Confusion CorpusSize DataRecord EpochRecord Example Json LossPoint
        LrTrace Metrics Perplexity PlainExample RunRecord Score StageRecord WordScore
        aligned_table format_score format_table label_counts scores
    """
    __getattr__, __dir__ = lazy_attributes(
        __name__,
        objects=dict.fromkeys(_NUMBERS.split(), "numbers")
        | dict.fromkeys(("Explanation", "Explanations", "TokenScore"), "explanations")
        | {"write_explanations": "page", "write_report": "page"}
        | {"write_run_report": "page"},
    )
