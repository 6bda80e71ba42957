package replicatest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

// soundKinds are what storage that keeps its promises may show.
var soundKinds = []Kind{Fail, Delay, FailLate, Shuffle, FailIteration}

const (
	seededDelay   = 10 * time.Millisecond
	seededBytes   = 512
	seededEntries = 8
)

// Seeded makes faults happen at random: to each call with probability rate,
// from 0 to 1, one of those kinds that affect its method, each as likely as
// the others. Without any kinds these are Fail, Delay, FailLate, Shuffle and
// FailIteration, which storage that keeps its promises may show too. Errors
// are ErrInjected, delays below 10 ms, parts below 512 bytes, and iterations
// fail within 8 entries.
//
// The same seed gives the same faults to the same sequence of calls, as far as
// their methods are the same. A plan draws one series for all its calls: a test
// whose calls are concurrent gets the same faults in another order.
func Seeded(seed uint64, rate float64, kinds ...Kind) Plan {
	if !(rate >= 0 && rate <= 1) {
		panic(fmt.Sprintf("replicatest: rate %v is not between 0 and 1", rate))
	}
	if len(kinds) == 0 {
		kinds = soundKinds
	}
	kinds = slices.Clone(kinds)
	var mu sync.Mutex // guards rng
	rng := rand.New(rand.NewPCG(seed, 0))
	// Every call draws the same number of values, so that one that passes does
	// not shift the rest.
	draw := func() (hit bool, choice uint64, amount float64) {
		mu.Lock()
		defer mu.Unlock()
		return rng.Float64() < rate, rng.Uint64(), rng.Float64()
	}
	return func(call Call) Fault {
		hit, choice, amount := draw()
		var fit []Kind
		for _, kind := range kinds {
			if kind.Affects(call.Method) {
				fit = append(fit, kind)
			}
		}
		if !hit || len(fit) == 0 {
			return Fault{}
		}
		f := Fault{Kind: fit[choice%uint64(len(fit))]}
		switch f.Kind {
		case Delay:
			f.Delay = time.Duration(amount * float64(seededDelay))
		case Tear, TearSilently, Short:
			f.Keep = int64(amount * seededBytes)
		case FailIteration:
			f.Keep = int64(amount * seededEntries)
		}
		return f
	}
}
