package litestream_test

import (
	"sync/atomic"
	"time"

	"example.com/litestream"
	"example.com/litestream/replicatest"
)

// flakyClient fails a seventh of the calls of another client at random, while
// it is on: at once, late, after it was done, or in the middle of what is read.
type flakyClient struct {
	*replicatest.FaultClient
	on     atomic.Bool
	faults atomic.Int64
}

// flakyDelay is the longest time for which a call is held up.
const flakyDelay = 500 * time.Millisecond

func newFlakyClient(inner litestream.ReplicaClient, seed uint64) *flakyClient {
	c := &flakyClient{}
	seeded := replicatest.Seeded(seed, 1.0/7, replicatest.Fail, replicatest.Delay, replicatest.FailLate,
		replicatest.Short, replicatest.Shuffle, replicatest.FailIteration)
	c.FaultClient = replicatest.NewFaultClient(inner, func(call replicatest.Call) replicatest.Fault {
		f := seeded(call)
		if !c.on.Load() || f.Kind == replicatest.None {
			return replicatest.Fault{}
		}
		c.faults.Add(1)
		switch f.Kind {
		case replicatest.Delay:
			f.Delay = min(50*f.Delay, flakyDelay)
		case replicatest.Short:
			f.Err = replicatest.ErrInjected // a body that ends early says so
		}
		return f
	})
	return c
}
