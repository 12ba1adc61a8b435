"""Use of trained models: samples, exchange with other programs, evaluation."""
