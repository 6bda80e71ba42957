package replicatest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"example.com/litestream"
)

// ErrInjected is what a [Fault] fails with unless it names another error.
var ErrInjected = errors.New("injected client failure")

// Call is one call of a method of a [litestream.ReplicaClient].
type Call struct {
	Ctx    context.Context
	Method string         // such as "WriteSnapshot"
	N      int            // of this method, from 1 on since the last SetPlans
	Pos    litestream.Pos // the arguments; zero in what the method does not take. The first of DeleteWALSegments
}

// Kind says what goes wrong.
type Kind int

// Kinds of faults. Each says which methods it is about; elsewhere it does
// nothing.
const (
	// None lets the call pass. A plan that returns it leaves the decision to
	// the next plan.
	None Kind = iota

	// Fail does nothing and returns Err. A write has read nothing.
	Fail

	// Hang waits until the context ends and returns its error. A call whose
	// context never ends hangs for ever.
	Hang

	// Delay waits for Fault.Delay, or until the context ends, and lets the
	// call pass then.
	Delay

	// FailLate lets the call do its work and returns Err in spite of that, as
	// a connection that breaks before the answer. What it opened is closed.
	FailLate

	// Tear is of writes: the first Keep bytes are stored, Err is returned, and
	// the part stays visible. A sound storage never does that.
	Tear

	// TearSilently is of writes: as Tear, but the write reports success, and
	// the size of the whole body.
	TearSilently

	// Short is of readers: the body ends after Keep bytes, with io.EOF as if it
	// were whole, or with Err if that is not nil.
	Short

	// Shuffle is of listings: they come in another order, one that the call's
	// number decides.
	Shuffle

	// Stale is of listings: what the previous call of the same listing should
	// have returned; nothing if there was none.
	Stale

	// FailIteration is of Snapshots and WALSegments: the call succeeds, and
	// the iterator ends after Keep entries with Err.
	FailIteration
)

// kinds holds what else there is to know of each Kind.
var kinds = [...]struct {
	name    string
	methods []string // that it is about; nil means all
}{
	None:          {"None", nil},
	Fail:          {"Fail", nil},
	Hang:          {"Hang", nil},
	Delay:         {"Delay", nil},
	FailLate:      {"FailLate", nil},
	Tear:          {"Tear", writes},
	TearSilently:  {"TearSilently", writes},
	Short:         {"Short", readers},
	Shuffle:       {"Shuffle", listings},
	Stale:         {"Stale", listings},
	FailIteration: {"FailIteration", listings[1:]},
}

var (
	listings = []string{"Generations", "Snapshots", "WALSegments"}
	readers  = []string{"SnapshotReader", "WALSegmentReader"}
	writes   = []string{"WriteSnapshot", "WriteWALSegment"}
	deletes  = []string{"DeleteGeneration", "DeleteSnapshot", "DeleteWALSegments"}
	methods  = slices.Concat(listings, readers, writes, deletes)
)

// String returns the constant's name.
func (k Kind) String() string {
	if k < 0 || int(k) >= len(kinds) {
		return fmt.Sprintf("Kind(%d)", int(k))
	}
	return kinds[k].name
}

// Affects reports whether a fault of the kind does anything to a method.
func (k Kind) Affects(method string) bool {
	if k <= None || int(k) >= len(kinds) {
		return false
	}
	return kinds[k].methods == nil || slices.Contains(kinds[k].methods, method)
}

// Fault is what happens to a call. The zero value lets it pass.
type Fault struct {
	Kind  Kind
	Err   error         // nil means ErrInjected, for Short io.EOF
	Keep  int64         // bytes of Tear, TearSilently and Short, entries of FailIteration
	Delay time.Duration // of Delay
}

func (f Fault) err() error {
	if f.Err == nil {
		return ErrInjected
	}
	return f.Err
}

// Plan decides what happens to a call, before the call has done anything. It
// must be safe for concurrent use. It may block, which holds up no other call,
// and it may call clients, the FaultClient itself too.
type Plan func(Call) Fault

// On makes a fault happen to every call of some methods; without any, of all
// methods. It panics if there is no such method.
func On(f Fault, methods ...string) Plan {
	mustBeMethods(methods)
	return func(call Call) Fault {
		if len(methods) == 0 || slices.Contains(methods, call.Method) {
			return f
		}
		return Fault{}
	}
}

// Nth makes a fault happen to the nth call of a method, counted from 1, and to
// no other. It panics if there is no such method.
func Nth(method string, n int, f Fault) Plan {
	mustBeMethods([]string{method})
	return func(call Call) Fault {
		if call.Method == method && call.N == n {
			return f
		}
		return Fault{}
	}
}

// FailNth fails the nth call of a method, and no other, with err; nil means
// ErrInjected. It panics if there is no such method.
func FailNth(method string, n int, err error) Plan {
	return Nth(method, n, Fault{Kind: Fail, Err: err})
}

// FailAll fails every call of some methods; without any, of all methods. A nil
// err means ErrInjected. It panics if there is no such method.
func FailAll(err error, methods ...string) Plan {
	return On(Fault{Kind: Fail, Err: err}, methods...)
}

func mustBeMethods(names []string) {
	for _, name := range names {
		if !slices.Contains(methods, name) {
			panic(fmt.Sprintf("replicatest: %q is no method of ReplicaClient that can fail", name))
		}
	}
}
