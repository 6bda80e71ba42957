package replicatest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"example.com/litestream"
	"example.com/litestream/replicatest"
)

// The conformance test of a client of your own.
func ExampleTestStorage() {
	_ = func(t *testing.T) { // TestConformance
		replicatest.TestStorage(t, func(t testing.TB) func() litestream.ReplicaClient {
			bucket := replicatest.NewMemClient() // here a new, empty bucket or directory
			return func() litestream.ReplicaClient { return bucket }
		})
	}
}

// A client whose storage cannot be opened a second time.
func ExampleTestClient() {
	_ = func(t *testing.T) { // TestConformance
		replicatest.TestClient(t, func(t testing.TB) litestream.ReplicaClient {
			return replicatest.NewMemClient()
		})
	}
}

func ExampleNewMemClient() {
	ctx := context.Background()
	c := replicatest.NewMemClient()
	info, err := c.WriteSnapshot(ctx, "0123456789abcdef", 0, strings.NewReader("compressed"))
	fmt.Println(info.Size, err)
	names, err := c.Generations(ctx)
	fmt.Println(names, err)
	// Output:
	// 10 <nil>
	// [0123456789abcdef] <nil>
}

func ExampleFailNth() {
	ctx := context.Background()
	c := replicatest.NewFaultClient(replicatest.NewMemClient(),
		replicatest.FailNth("Generations", 2, errors.New("connection lost")))
	for range 3 {
		_, err := c.Generations(ctx)
		fmt.Println(err)
	}
	fmt.Println(c.Calls("Generations"), "calls")
	// Output:
	// <nil>
	// connection lost
	// <nil>
	// 3 calls
}

// Storage that breaks its promise: it keeps a part and reports success.
func ExampleNth() {
	ctx := context.Background()
	c := replicatest.NewFaultClient(replicatest.NewMemClient(),
		replicatest.Nth("WriteSnapshot", 1, replicatest.Fault{Kind: replicatest.TearSilently, Keep: 4}))
	info, err := c.WriteSnapshot(ctx, "0123456789abcdef", 0, strings.NewReader("compressed"))
	fmt.Println(info.Size, err)
	rc, err := c.SnapshotReader(ctx, "0123456789abcdef", 0)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	fmt.Printf("%s %v\n", b, err)
	// Output:
	// 10 <nil>
	// comp <nil>
}

// A rule of your own: whatever belongs to index 7 is not to be had.
func ExamplePlan() {
	ctx := context.Background()
	c := replicatest.NewFaultClient(replicatest.NewMemClient(), func(call replicatest.Call) replicatest.Fault {
		if call.Pos.Index == 7 {
			return replicatest.Fault{Kind: replicatest.Fail}
		}
		return replicatest.Fault{}
	})
	for _, index := range []int{6, 7} {
		_, err := c.WriteSnapshot(ctx, "0123456789abcdef", index, strings.NewReader("x"))
		fmt.Println(err)
	}
	// Output:
	// <nil>
	// injected client failure
}

// The same seed makes the same calls fail.
func ExampleSeeded() {
	ctx := context.Background()
	for range 2 {
		c := replicatest.NewFaultClient(replicatest.NewMemClient(),
			replicatest.Seeded(42, 0.5, replicatest.Fail, replicatest.FailLate))
		var passed []bool
		for range 8 {
			err := c.DeleteGeneration(ctx, "0123456789abcdef")
			passed = append(passed, err == nil)
		}
		fmt.Println(passed)
	}
	// Output:
	// [false false false false true true true false]
	// [false false false false true true true false]
}
