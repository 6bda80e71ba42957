package litestream_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"example.com/litestream"
	"example.com/litestream/replicatest"
)

// fakeClock stands still unless it is moved.
type fakeClock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *fakeClock) time() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// jobFixture is a fixture whose replica runs by a fake clock, which begins
// with the present.
type jobFixture struct {
	*fixture
	clock *fakeClock
	start time.Time
	log   logBuffer
}

func newJobFixture(t testing.TB, options ...func(*litestream.Replica)) *jobFixture {
	t.Helper()
	start := time.Now()
	jf := &jobFixture{clock: &fakeClock{now: start}, start: start}
	jf.fixture = newFixture(t, jf.option(options...))
	return jf
}

func (jf *jobFixture) option(options ...func(*litestream.Replica)) func(*litestream.DB) {
	return func(db *litestream.DB) {
		r := db.Replicas[0]
		r.SyncInterval = 0
		litestream.SetClock(r, jf.clock.time, jf.clock.time)
		r.Logger = jf.log.logger()
		r.Retention = 0
		for _, option := range options {
			option(r)
		}
	}
}

func (jf *jobFixture) replica() *litestream.Replica { return jf.db.Replicas[0] }

// at moves the clock to a time since the start.
func (jf *jobFixture) at(d time.Duration) {
	jf.clock.mu.Lock()
	jf.clock.now = jf.start.Add(d)
	jf.clock.mu.Unlock()
	jf.replica().WakeLoop()
}

// snapshots checks how many the replica object has made by a time. It gives
// one too many the time to appear.
func (jf *jobFixture) snapshots(t testing.TB, d time.Duration, want uint64) {
	t.Helper()
	jf.nextIndex(t) // of each index there is one snapshot
	eventually(t, 10*time.Second, "the position is known", func() bool { return jf.replica().Pos() == jf.db.Pos() })
	jf.at(d)
	what := fmt.Sprintf("%d snapshots at %v", want, d)
	eventually(t, 10*time.Second, what, func() bool { return jf.replica().Stats().Snapshots >= want })
	for range 5 {
		jf.replica().WakeLoop()
		pass(10 * time.Millisecond)
	}
	if got := jf.replica().Stats().Snapshots; got != want {
		t.Fatalf("%d snapshots at %v, want %d", got, d, want)
	}
}

func hourly(r *litestream.Replica) { r.SnapshotInterval = time.Hour }

// PITFALLS row 43
func TestJobs_SnapshotScheduleGoesOnAcrossRestarts(t *testing.T) {
	jf := newJobFixture(t, hourly)
	jf.snapshots(t, 50*time.Minute, 1) // the one that the generation began with
	jf.reopen(t, jf.option(hourly))
	jf.snapshots(t, 55*time.Minute, 0)
	jf.reopen(t, jf.option(hourly))
	jf.snapshots(t, 58*time.Minute, 0)
	jf.snapshots(t, 62*time.Minute, 1)
	jf.snapshots(t, 120*time.Minute, 1)
	jf.snapshots(t, 124*time.Minute, 2)
	jf.mustReplicate(t)
}

// Whoever made the last snapshot, the next is due an interval later.
func TestJobs_SnapshotOfTheHostCounts(t *testing.T) {
	jf := newJobFixture(t, func(r *litestream.Replica) { r.SnapshotInterval = 2 * time.Second })
	jf.snapshots(t, time.Second, 1)
	jf.nextIndex(t)
	if _, err := jf.replica().Snapshot(ctx); err != nil { // stamped with the real time
		t.Fatal(err)
	}
	jf.snapshots(t, 1999*time.Millisecond, 2)
	jf.snapshots(t, time.Hour, 3)
}

// skewedClient belongs to a replica whose clock is wrong.
type skewedClient struct {
	litestream.ReplicaClient
	skew time.Duration
}

func (c skewedClient) Snapshots(ctx context.Context, generation string) (litestream.SnapshotIterator, error) {
	itr, err := c.ReplicaClient.Snapshots(ctx, generation)
	if err != nil {
		return nil, err
	}
	infos, err := litestream.SliceSnapshotIterator(itr)
	for i := range infos {
		infos[i].CreatedAt = infos[i].CreatedAt.Add(c.skew)
	}
	return litestream.NewSnapshotInfoSliceIterator(infos), err
}

// A clock that is wrong by more than the interval neither makes snapshots
// follow each other without a pause nor keeps them from being made. PITFALLS
// row 41
func TestJobs_WrongClockOfTheReplica(t *testing.T) {
	for _, skew := range []time.Duration{-48 * time.Hour, -3 * time.Hour, 6 * time.Hour, 48 * time.Hour} {
		t.Run(skew.String(), func(t *testing.T) {
			jf := newJobFixture(t, hourly)
			jf.nextIndex(t)
			jf.replica().Stop()
			behind := jf.client.Unwrap().(*movableClient)
			behind.ReplicaClient = skewedClient{behind.ReplicaClient, skew}
			jf.reopen(t, jf.option(hourly))
			jf.snapshots(t, 2*time.Minute, 1) // whether the last one was long ago is not known
			jf.snapshots(t, 59*time.Minute, 1)
			jf.snapshots(t, 64*time.Minute, 2)
			jf.snapshots(t, 120*time.Minute, 2)
			jf.snapshots(t, 126*time.Minute, 3)
		})
	}
}

func TestJobs_FailedOneIsTriedAgain(t *testing.T) {
	jf := newJobFixture(t, hourly)
	jf.snapshots(t, 2*time.Minute, 1)
	jf.nextIndex(t)
	jf.client.SetPlans(replicatest.FailAll(errInjected, "WriteSnapshot"))
	jf.at(61 * time.Minute)
	attempts := func(n int) {
		t.Helper()
		eventually(t, 10*time.Second, "an attempt", func() bool { return jf.client.Calls("WriteSnapshot") == n })
	}
	attempts(1)
	eventually(t, 10*time.Second, "a log line", func() bool { return strings.Contains(jf.log.String(), errInjected.Error()) })
	jf.at(61*time.Minute + 30*time.Second)
	pass(50 * time.Millisecond)
	attempts(1)
	jf.at(63 * time.Minute)
	attempts(2)
	jf.client.SetPlans()
	for m := time.Duration(64); m < 100 && jf.replica().Stats().Snapshots < 2; m++ {
		jf.at(m * time.Minute)
		pass(100 * time.Millisecond)
	}
	eventually(t, 10*time.Second, "a log line", func() bool { return strings.Contains(jf.log.String(), "snapshot: recovered") })
	if n := strings.Count(jf.log.String(), errInjected.Error()); n != 1 {
		t.Errorf("the error was logged %d times:\n%s", n, &jf.log)
	}
}

// A slow job is followed by the next; syncs go on beside it.
func TestJobs_DoNotOverlap(t *testing.T) {
	jf := newJobFixture(t, hourly, func(r *litestream.Replica) {
		r.Retention, r.RetentionCheckInterval = retention, 10*time.Minute
	})
	jf.snapshots(t, 2*time.Minute, 1)
	jf.nextIndex(t)
	hung, proceed := make(chan struct{}, 10), make(chan struct{})
	jf.client.SetPlans(failIf(func(call replicatest.Call) error {
		if call.Method == "WriteSnapshot" {
			hung <- struct{}{}
			<-proceed
		}
		return nil
	}))
	jf.at(61 * time.Minute)
	within(t, "a job", func() { <-hung })
	before := jf.client.Calls("Generations")
	jf.at(5 * time.Hour)
	jf.insert(t, "beside the job")
	if err := jf.db.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	within(t, "a sync beside a job", func() {
		if err := jf.replica().WaitPos(ctx, jf.db.Pos()); err != nil {
			t.Error(err)
		}
	})
	pass(50 * time.Millisecond)
	if n := jf.client.Calls("Generations") - before; n > 0 {
		t.Errorf("retention ran %d times beside a snapshot", n)
	}
	if n := jf.client.Calls("WriteSnapshot"); n != 1 {
		t.Errorf("%d snapshots at a time", n)
	}
	close(proceed)
	eventually(t, 10*time.Second, "retention runs", func() bool {
		jf.replica().WakeLoop()
		return jf.client.Calls("Generations") > before
	})
	jf.client.SetPlans()
}

func TestJobs_StopJoinsARunningOne(t *testing.T) {
	before := runtime.NumGoroutine()
	for _, tt := range []struct {
		job    string
		method string
		option func(*litestream.Replica)
	}{
		{"snapshot", "WriteSnapshot", hourly},
		{"retention", "Generations", func(r *litestream.Replica) { r.Retention = retention }},
		{"validation", "SnapshotReader", func(r *litestream.Replica) { r.ValidationInterval = time.Hour }},
	} {
		t.Run(tt.job, func(t *testing.T) {
			jf := newJobFixture(t, tt.option)
			jf.nextIndex(t)
			hung := hangOn(jf.client, tt.method)
			jf.at(61 * time.Minute)
			within(t, "a job", func() { <-hung })
			within(t, "Stop", jf.replica().Stop)
			calls := jf.client.Calls()
			pass(20 * time.Millisecond)
			if n := jf.client.Calls() - calls; n > 0 {
				t.Errorf("%d calls after Stop", n)
			}
			if strings.Contains(jf.log.String(), "canceled") {
				t.Errorf("the end is logged as an error:\n%s", &jf.log)
			}
			if names := tempFiles(t, jf.dir); len(names) > 0 {
				t.Errorf("left behind: %v", names)
			}
			jf.client.SetPlans()
			jf.replica().Start(ctx)
			jf.insert(t, "after it was started again")
			if err := jf.db.Sync(ctx); err != nil {
				t.Fatal(err)
			}
			if err := jf.replica().WaitPos(ctx, jf.db.Pos()); err != nil {
				t.Fatal(err)
			}
			if err := jf.db.Close(); err != nil {
				t.Error(err)
			}
			if err := jf.host.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	goroutinesSettle(t, before)
}

// A program that restarts often must come to it. PITFALLS row 43
func TestJobs_RetentionRunsSoonAfterTheStart(t *testing.T) {
	for _, interval := range []time.Duration{time.Hour, 30 * 24 * time.Hour} {
		jf := newJobFixture(t, func(r *litestream.Replica) { r.Retention, r.RetentionCheckInterval = retention, interval })
		jf.at(2*time.Minute + time.Second)
		lists := func(n int) func() bool { return func() bool { return jf.client.Calls("Generations") >= n } }
		eventually(t, 10*time.Second, "retention runs", lists(1))
		passed := 3 * time.Minute
		eventually(t, 10*time.Second, "it ends", func() bool {
			if passed < 100*interval { // it is due an interval after it ended, by the clock of then
				passed += interval
			}
			jf.at(passed)
			return lists(2)()
		})
	}
}

// Jobs whose interval is 0 never run.
func TestJobs_ZeroIntervalsAreNever(t *testing.T) {
	jf := newJobFixture(t)
	jf.client.SetPlans()
	jf.snapshots(t, 1000*time.Hour, 1)
	if n := jf.client.Calls("Generations", "Snapshots", "SnapshotReader", "WriteSnapshot"); n > 0 {
		t.Errorf("%d calls", n)
	}
}
