"""One trace of a model, and what is read from it: FLOPs here, latency in `regrow.latency`, channels in
`regrow.coupling`."""
