"""Grade notebooks: a jailed worker runs the learner's code and computes, a trusted examiner decides."""
