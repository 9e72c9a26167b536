"""Interaction logs: reading, id maps, the sequence store, splits and batches."""

from hyenarec.data.ids import Ids
from hyenarec.data.reading import open_data, read_log
from hyenarec.data.splits import Split, global_temporal, leave_one_out
from hyenarec.data.store import SequenceStore

__all__ = ["Ids", "SequenceStore", "Split", "global_temporal", "leave_one_out", "open_data", "read_log"]
