package litestream_test

import (
	"errors"

	"example.com/litestream"
	"example.com/litestream/replicatest"
)

// movableClient is the client behind the FaultClient of a fixture. A test can
// put another in its place while nobody uses it.
type movableClient struct{ litestream.ReplicaClient }

// errInjected is what a FaultClient fails with unless told otherwise.
var errInjected = replicatest.ErrInjected

// errIteration is what failIteration fails with.
var errIteration = errors.New("injected iteration failure")

// failIteration makes a listing succeed and its iterator end at once.
var failIteration = replicatest.Fault{Kind: replicatest.FailIteration, Err: errIteration}

// failIf fails the calls for which hook returns an error. The hook may block.
func failIf(hook func(replicatest.Call) error) replicatest.Plan {
	return func(call replicatest.Call) replicatest.Fault {
		if err := hook(call); err != nil {
			return replicatest.Fault{Kind: replicatest.Fail, Err: err}
		}
		return replicatest.Fault{}
	}
}

// hangOn makes calls of a method wait until their context ends. The channel
// receives the first of them.
func hangOn(c *replicatest.FaultClient, method string) <-chan struct{} {
	hung := make(chan struct{}, 1)
	c.SetPlans(func(call replicatest.Call) replicatest.Fault {
		if call.Method != method {
			return replicatest.Fault{}
		}
		select {
		case hung <- struct{}{}:
		default:
		}
		return replicatest.Fault{Kind: replicatest.Hang}
	})
	return hung
}
