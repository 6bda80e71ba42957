package litestream

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// DBStats is a snapshot of a DB's counters. Counters start at 0 with NewDB.
type DBStats struct {
	Pos      Pos   // captured up to here
	PageSize int   // bytes
	WALSize  int64 // bytes of the WAL in use

	LastError   error     // of the last capture, nil if it succeeded
	LastCapture time.Time // of the last capture that found a commit; zero before it

	Segments    uint64 // captured
	Bytes       uint64 // of the WAL, captured
	WALRestarts uint64 // seen
	Checkpoints uint64 // run by the library
	Generations uint64 // begun

	// How long the library held the database's write lock: the longest time,
	// and an upper bound, within 25 %, of 99 of 100 times.
	LockHolds   uint64
	LockHoldMax time.Duration
	LockHoldP99 time.Duration

	Replicas []ReplicaStats // in the order of DB.Replicas; zero for one that is nil

	Follower FollowerStats // zero for a primary
}

// ReplicaStats is a snapshot of a Replica's state and counters.
type ReplicaStats struct {
	Name string
	Pos  Pos // durable on the replica up to here

	// Lag is how long the oldest commit that is not on the replica has waited
	// since its capture; 0 when there is none.
	Lag time.Duration

	LastError error     // of the last sync, nil if it succeeded
	LastSync  time.Time // when the last sync succeeded; zero before

	Segments  uint64 // written
	Snapshots uint64 // written
	Bytes     int64  // compressed, written

	ChecksumMismatches uint64 // found by Validate
}

// dbCounters are added to without a lock.
type dbCounters struct {
	segments, bytes, restarts, checkpoints, generations atomic.Uint64
	fruitless                                           atomic.Int64 // see DB.fruitless
	checkpointAt                                        atomic.Int64 // when the next automatic checkpoint is expected, in Unix nanoseconds
	holds                                               durationHistogram
}

func (c *dbCounters) add(got captured) {
	c.segments.Add(uint64(got.segments))
	c.bytes.Add(uint64(got.bytes))
	c.restarts.Add(uint64(got.restarts))
	if got.generation != "" {
		c.generations.Add(1)
	}
}

// Stats returns the current figures. It takes no lock that is held during I/O,
// so it may be called as often as wanted. With package expvar:
//
//	expvar.Publish("app.db", expvar.Func(func() any { return db.Stats() }))
func (db *DB) Stats() DBStats {
	st := db.status.Load()
	s := DBStats{
		Pos:         st.pos,
		PageSize:    st.pageSize,
		WALSize:     st.walSize,
		LastError:   db.errs.lastError(),
		LastCapture: st.capturedAt,
		Segments:    db.count.segments.Load(),
		Bytes:       db.count.bytes.Load(),
		WALRestarts: db.count.restarts.Load(),
		Checkpoints: db.count.checkpoints.Load(),
		Generations: db.count.generations.Load(),
	}
	s.LockHolds, s.LockHoldMax, s.LockHoldP99 = db.count.holds.summary()
	for _, r := range db.Replicas {
		var rs ReplicaStats
		if r != nil {
			rs = r.Stats()
		}
		s.Replicas = append(s.Replicas, rs)
	}
	if f := db.follower.Load(); f != nil {
		f.mu.Lock()
		s.Follower = f.mu.stats
		f.mu.Unlock()
		if s.LastError == nil {
			s.LastError = f.storeErrs.lastError()
		}
	}
	return s
}

// durationHistogram counts durations in buckets whose bounds grow by a
// quarter of a power of two. The zero value is empty.
type durationHistogram struct {
	buckets [256]atomic.Uint64
	longest atomic.Int64
}

func (h *durationHistogram) add(d time.Duration) {
	h.buckets[durationBucket(d)].Add(1)
	for {
		old := h.longest.Load()
		if int64(d) <= old || h.longest.CompareAndSwap(old, int64(d)) {
			return
		}
	}
}

// durationBucket returns 4 buckets for each power of two.
func durationBucket(d time.Duration) int {
	v := uint64(max(d, 0))
	if v < 8 {
		return int(v)
	}
	n := bits.Len64(v)                   // v has its top bit at n-1
	return (n-1)*4 + int(v>>(n-3))&3 - 4 // the next two bits
}

// bucketBound returns the largest duration of a bucket.
func bucketBound(i int) time.Duration {
	if i < 8 {
		return time.Duration(i)
	}
	n, sub := (i+4)/4+1, (i+4)%4
	return time.Duration((uint64(4+sub+1) << (n - 3)) - 1)
}

func (h *durationHistogram) summary() (n uint64, longest, p99 time.Duration) {
	var counts [len(h.buckets)]uint64
	for i := range h.buckets {
		counts[i] = h.buckets[i].Load()
		n += counts[i]
	}
	longest = time.Duration(h.longest.Load())
	var seen uint64
	for i, c := range counts {
		if seen += c; n > 0 && seen*100 >= n*99 {
			return n, longest, min(bucketBound(i), longest)
		}
	}
	return n, longest, 0
}
