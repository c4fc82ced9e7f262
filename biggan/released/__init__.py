"""Weights from elsewhere, and to elsewhere: the formats of other programs, transfer learning, promotion to more pixels.

A reader (`reference_trainer`, `huggingface`, `tfhub`) turns a source into a `Released`; `directory` writes that as a
checkpoint or a run of this program. Nothing is ever unpickled except plain tensors and numbers (`pickles`).
"""
