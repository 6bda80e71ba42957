package replicatest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/replicatest"
)

const gen = "0123456789abcdef"

var errTest = errors.New("error of the test")

// filled returns a client with 6 segments of index 0 and 3 snapshots, and a
// FaultClient before it.
func filled(t testing.TB, plans ...replicatest.Plan) (*replicatest.MemClient, *replicatest.FaultClient) {
	t.Helper()
	mem := replicatest.NewMemClient()
	for i := range 6 {
		pos := litestream.Pos{Generation: gen, Offset: int64(i)}
		if _, err := mem.WriteWALSegment(t.Context(), pos, strings.NewReader("segment body")); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		if _, err := mem.WriteSnapshot(t.Context(), gen, i, strings.NewReader("snapshot body")); err != nil {
			t.Fatal(err)
		}
	}
	return mem, replicatest.NewFaultClient(mem, plans...)
}

// everyMethod calls each method once and returns the errors by method.
func everyMethod(ctx context.Context, c litestream.ReplicaClient) map[string]error {
	pos := litestream.Pos{Generation: gen, Index: 7, Offset: 8}
	errs := map[string]error{}
	_, errs["Generations"] = c.Generations(ctx)
	if itr, err := c.Snapshots(ctx, gen); err == nil {
		_, errs["Snapshots"] = litestream.SliceSnapshotIterator(itr)
	} else {
		errs["Snapshots"] = err
	}
	if itr, err := c.WALSegments(ctx, gen); err == nil {
		_, errs["WALSegments"] = litestream.SliceWALSegmentIterator(itr)
	} else {
		errs["WALSegments"] = err
	}
	_, errs["WriteSnapshot"] = c.WriteSnapshot(ctx, gen, pos.Index, strings.NewReader("written"))
	_, errs["WriteWALSegment"] = c.WriteWALSegment(ctx, pos, strings.NewReader("written"))
	_, errs["SnapshotReader"] = readAll(c.SnapshotReader(ctx, gen, 0))
	_, errs["WALSegmentReader"] = readAll(c.WALSegmentReader(ctx, litestream.Pos{Generation: gen}))
	errs["DeleteSnapshot"] = c.DeleteSnapshot(ctx, gen, 2)
	errs["DeleteWALSegments"] = c.DeleteWALSegments(ctx, []litestream.Pos{{Generation: gen, Offset: 5}})
	errs["DeleteGeneration"] = c.DeleteGeneration(ctx, "00000000deadbeef")
	return errs
}

func readAll(rc io.ReadCloser, err error) (string, error) {
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(rc)
	return string(b), errors.Join(err, rc.Close())
}

func offsets(t testing.TB, c litestream.ReplicaClient) (got []int64, err error) {
	t.Helper()
	itr, err := c.WALSegments(t.Context(), gen)
	if err != nil {
		t.Fatal(err)
	}
	for itr.Next() {
		if itr.Err() != nil {
			t.Errorf("an error before the end: %v", itr.Err())
		}
		got = append(got, itr.WALSegment().Offset)
	}
	return got, errors.Join(itr.Err(), itr.Close())
}

func TestFaultClient_KindsAffectTheirMethods(t *testing.T) {
	for kind := replicatest.None; ; kind++ {
		if strings.HasPrefix(kind.String(), "Kind(") {
			if kind < 10 {
				t.Fatalf("only %d kinds", kind)
			}
			break
		}
		mem, c := filled(t, replicatest.On(replicatest.Fault{Kind: kind, Err: errTest}))
		ctx, cancel := context.WithCancel(t.Context())
		if kind == replicatest.Hang {
			time.AfterFunc(10*time.Millisecond, cancel)
		}
		for method, err := range everyMethod(ctx, c) {
			fails := kind.Affects(method)
			switch kind {
			case replicatest.Delay, replicatest.TearSilently, replicatest.Shuffle, replicatest.Stale:
				fails = false
			}
			want := errTest
			if kind == replicatest.Hang {
				want = context.Canceled
			}
			if fails != errors.Is(err, want) || !fails && err != nil {
				t.Errorf("%v of %s: %v", kind, method, err)
			}
			if n := c.Calls(method); n != 1 {
				t.Errorf("%s: %d calls", method, n)
			}
		}
		cancel()
		if n := c.Calls(); n != 10 {
			t.Errorf("%d calls", n)
		}
		if c.Unwrap() != litestream.ReplicaClient(mem) || c.Type() != mem.Type() {
			t.Error("another client")
		}
		body, err := readAll(mem.SnapshotReader(t.Context(), gen, 7))
		switch kind {
		case replicatest.Fail, replicatest.Hang:
			if err == nil {
				t.Errorf("%v: stored %q", kind, body)
			}
		case replicatest.Tear, replicatest.TearSilently:
			if body != "" || err != nil {
				t.Errorf("%v: stored %q, %v", kind, body, err)
			}
		default:
			if body != "written" || err != nil {
				t.Errorf("%v: stored %q, %v", kind, body, err)
			}
		}
	}
}

func TestFaultClient_PartsAreAsLongAsTheFaultSays(t *testing.T) {
	mem, c := filled(t)
	for _, kind := range []replicatest.Kind{replicatest.Tear, replicatest.TearSilently} {
		for _, n := range []int64{-1, 0, 3, 100} {
			c.SetPlans(replicatest.Nth("WriteSnapshot", 1, replicatest.Fault{Kind: kind, Keep: n}))
			src := strings.NewReader("0123456789")
			info, err := c.WriteSnapshot(t.Context(), gen, 9, src)
			if silent := kind == replicatest.TearSilently; silent != (err == nil) || silent && (info.Size != 10 || src.Len() > 0) {
				t.Errorf("%v: %v, %v, %d bytes left", kind, info, err, src.Len())
			}
			if want := "0123456789"[:min(max(n, 0), 10)]; true {
				if got, err := readAll(mem.SnapshotReader(t.Context(), gen, 9)); got != want || err != nil {
					t.Errorf("%v: stored %q, %v, want %q", kind, got, err, want)
				}
			}
			if _, err := c.WriteSnapshot(t.Context(), gen, 9, strings.NewReader("next")); err != nil {
				t.Errorf("the next: %v", err)
			}
		}
	}
	for _, want := range []error{nil, errTest} {
		for _, n := range []int64{-1, 0, 3, 100} {
			c.SetPlans(replicatest.On(replicatest.Fault{Kind: replicatest.Short, Err: want, Keep: n}))
			got, err := readAll(c.SnapshotReader(t.Context(), gen, 0))
			if n == 100 {
				want = nil
			}
			if part := "snapshot body"[:min(max(n, 0), 13)]; got != part || !errors.Is(err, want) {
				t.Errorf("read %q, %v, want %q, %v", got, err, part, want)
			}
		}
	}
	for _, n := range []int64{-1, 0, 4, 100} {
		c.SetPlans(replicatest.On(replicatest.Fault{Kind: replicatest.FailIteration, Keep: n}))
		if got, err := offsets(t, c); len(got) != int(min(max(n, 0), 6)) || !errors.Is(err, replicatest.ErrInjected) {
			t.Errorf("listed %v, %v, want %d", got, err, n)
		}
	}
}

func TestFaultClient_ShuffledAndStaleListings(t *testing.T) {
	mem, c := filled(t, replicatest.On(replicatest.Fault{Kind: replicatest.Shuffle}))
	first, err := offsets(t, c)
	if err != nil || slices.IsSorted(first) || len(first) != 6 {
		t.Errorf("listed %v, %v", first, err)
	}
	if again, err := offsets(t, replicatest.NewFaultClient(mem, replicatest.On(replicatest.Fault{Kind: replicatest.Shuffle}))); err != nil || !slices.Equal(first, again) {
		t.Errorf("the same call: %v and %v, %v", first, again, err)
	}

	stale := replicatest.Fault{Kind: replicatest.Stale}
	c = replicatest.NewFaultClient(mem, replicatest.On(stale))
	want := []int64(nil)
	for range 3 { // each call is one behind
		got, err := offsets(t, c)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("listed %v, %v, want %v", got, err, want)
		}
		c.SetPlans()
		if want, err = offsets(t, c); err != nil || len(want) == 0 {
			t.Errorf("listed %v, %v", want, err)
		}
		c.SetPlans(replicatest.On(stale))
		if err := mem.DeleteWALSegments(t.Context(), []litestream.Pos{{Generation: gen, Offset: want[0]}}); err != nil {
			t.Error(err)
		}
	}
	if names, err := c.Generations(t.Context()); len(names) != 0 || err != nil {
		t.Errorf("generations %q, %v", names, err)
	}
}

func TestFaultClient_DelayEndsWithTheContext(t *testing.T) {
	_, c := filled(t, replicatest.On(replicatest.Fault{Kind: replicatest.Delay, Delay: time.Hour}))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Generations(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	c.SetPlans(replicatest.On(replicatest.Fault{Kind: replicatest.Delay, Delay: 20 * time.Millisecond}))
	start := time.Now()
	if names, err := c.Generations(t.Context()); err != nil || len(names) != 1 || time.Since(start) < 20*time.Millisecond {
		t.Errorf("%q, %v after %v", names, err, time.Since(start))
	}
}

func TestFaultClient_FirstPlanThatHasAFaultDecides(t *testing.T) {
	_, c := filled(t,
		replicatest.FailNth("Generations", 2, errTest),
		replicatest.FailAll(nil, "Generations", "DeleteSnapshot"))
	for n, want := range []error{1: replicatest.ErrInjected, 2: errTest, 3: replicatest.ErrInjected} {
		if n == 0 {
			continue
		}
		if _, err := c.Generations(t.Context()); !errors.Is(err, want) {
			t.Errorf("call %d: %v", n, err)
		}
	}
	if _, err := c.SnapshotReader(t.Context(), gen, 0); err != nil {
		t.Error(err)
	}
	// A plan may call the client, and sees what is called.
	var calls []replicatest.Call
	c.SetPlans(func(call replicatest.Call) replicatest.Fault {
		calls = append(calls, call)
		if call.Method == "WriteWALSegment" {
			if err := c.DeleteWALSegments(call.Ctx, []litestream.Pos{call.Pos, {Generation: gen}}); err != nil {
				t.Error(err)
			}
		}
		return replicatest.Fault{}
	})
	pos := litestream.Pos{Generation: gen, Index: 3, Offset: 4}
	if _, err := c.WriteWALSegment(t.Context(), pos, strings.NewReader("x")); err != nil {
		t.Error(err)
	}
	if len(calls) != 2 || calls[0].Pos != pos || calls[1].Pos != pos || calls[1].Method != "DeleteWALSegments" || calls[1].N != 1 {
		t.Errorf("calls %+v", calls)
	}
}

func TestFaultClient_UnknownMethodsPanic(t *testing.T) {
	for what, f := range map[string]func(){
		"On":      func() { replicatest.On(replicatest.Fault{}, "Generations", "generations") },
		"Nth":     func() { replicatest.Nth("Type", 1, replicatest.Fault{}) },
		"FailNth": func() { replicatest.FailNth("", 1, nil) },
		"FailAll": func() { replicatest.FailAll(nil, "x") },
		"Calls":   func() { replicatest.NewFaultClient(nil).Calls("x") },
		"Seeded":  func() { replicatest.Seeded(1, 1.5) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s did not panic", what)
				}
			}()
			f()
		}()
	}
}

// seededCalls returns what happens to a sequence of calls.
func seededCalls(seed uint64, rate float64, kinds ...replicatest.Kind) (faults []string) {
	plan := replicatest.Seeded(seed, rate, kinds...)
	for i := range 300 {
		method := []string{"Generations", "Snapshots", "WriteSnapshot", "SnapshotReader", "DeleteSnapshot"}[i%5]
		f := plan(replicatest.Call{Method: method, N: i/5 + 1})
		if f.Kind != replicatest.None && !f.Kind.Affects(method) {
			panic(fmt.Sprintf("%v of %s", f.Kind, method))
		}
		faults = append(faults, fmt.Sprint(f))
	}
	return faults
}

func TestSeeded_SameSeedSameFaults(t *testing.T) {
	all := []replicatest.Kind{
		replicatest.Fail, replicatest.Delay, replicatest.FailLate, replicatest.Tear, replicatest.TearSilently,
		replicatest.Short, replicatest.Shuffle, replicatest.Stale, replicatest.FailIteration,
	}
	for _, kinds := range [][]replicatest.Kind{nil, all} {
		first := seededCalls(1, 0.5, kinds...)
		if !slices.Equal(first, seededCalls(1, 0.5, kinds...)) {
			t.Error("the same seed gives other faults")
		}
		if slices.Equal(first, seededCalls(2, 0.5, kinds...)) {
			t.Error("another seed gives the same faults")
		}
		passed := 0
		for _, f := range first {
			if f == fmt.Sprint(replicatest.Fault{}) {
				passed++
			}
		}
		if passed < 100 || passed > 200 {
			t.Errorf("%d of 300 calls passed at a rate of one half", passed)
		}
	}
	if never := slices.Compact(seededCalls(1, 0)); len(never) != 1 {
		t.Errorf("at a rate of 0: %v", never)
	}
	if slices.Contains(seededCalls(1, 1), fmt.Sprint(replicatest.Fault{})) {
		t.Error("a call passes at a rate of 1")
	}
}

func TestSeeded_IsSafeForConcurrentUse(t *testing.T) {
	_, c := filled(t, replicatest.Seeded(3, 0.5))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				everyMethod(t.Context(), c)
			}
		})
	}
	wg.Wait()
	if n := c.Calls(); n != 8*20*10 {
		t.Errorf("%d calls", n)
	}
}

func TestMemClient_CloneAndClock(t *testing.T) {
	c := replicatest.NewMemClient()
	at := time.Date(2030, 1, 2, 3, 4, 5, 6, time.FixedZone("x", 3600))
	c.Now = func() time.Time { return at }
	pos := litestream.Pos{Generation: gen}
	info, err := c.WriteWALSegment(t.Context(), pos, strings.NewReader("x"))
	if err != nil || !info.CreatedAt.Equal(at) || info.CreatedAt.Location() != time.UTC {
		t.Errorf("%v, %v", info, err)
	}
	d := c.Clone()
	if err := c.DeleteGeneration(t.Context(), gen); err != nil {
		t.Error(err)
	}
	if got, err := readAll(d.WALSegmentReader(t.Context(), pos)); got != "x" || err != nil {
		t.Errorf("the clone holds %q, %v", got, err)
	}
	if info, err := d.WriteSnapshot(t.Context(), gen, 1, strings.NewReader("y")); err != nil || !info.CreatedAt.Equal(at) {
		t.Errorf("%v, %v", info, err)
	}
	if _, err := c.SnapshotReader(t.Context(), gen, 1); err == nil {
		t.Error("what the clone stores is in the original")
	}
	rc, err := d.SnapshotReader(t.Context(), gen, 1)
	if err = errors.Join(err, rc.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := rc.Read(make([]byte, 1)); err == nil || rc.Close() == nil {
		t.Error("a closed reader reads or closes")
	}
}
