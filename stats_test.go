package litestream

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"
)

// Each duration is in one bucket, whose bound is at most a quarter above it.
func TestDurationBuckets(t *testing.T) {
	check := func(d time.Duration) {
		t.Helper()
		i := durationBucket(d)
		bound := bucketBound(i)
		if bound < d || float64(bound) > 1.25*float64(d) {
			t.Fatalf("%d is in bucket %d, up to %d", d, i, bound)
		}
		if i > 0 && bucketBound(i-1) >= d {
			t.Fatalf("%d is in bucket %d, but the one before ends at %d", d, i, bucketBound(i-1))
		}
	}
	for d := range time.Duration(5000) {
		check(d)
	}
	for n := range 62 {
		for _, d := range []int64{-1, 0, 1} {
			check(time.Duration(int64(1)<<(n+1) + d))
		}
	}
	for range 5000 {
		check(time.Duration(rand.Int64() >> rand.IntN(63)))
	}
	check(math.MaxInt64)
	if i := durationBucket(-5); i != 0 {
		t.Errorf("a clock that went back is in bucket %d", i)
	}
	if i, n := durationBucket(math.MaxInt64), len(durationHistogram{}.buckets); i >= n {
		t.Errorf("bucket %d of %d", i, n)
	}
}

func TestDurationSummary(t *testing.T) {
	var h durationHistogram
	if n, longest, p99 := h.summary(); n != 0 || longest != 0 || p99 != 0 {
		t.Errorf("empty: %d %v %v", n, longest, p99)
	}
	for range 990 {
		h.add(time.Millisecond)
	}
	for range 10 {
		h.add(time.Second)
	}
	n, longest, p99 := h.summary()
	if n != 1000 || longest != time.Second || p99 < time.Millisecond || p99 > 1250*time.Microsecond {
		t.Errorf("%d holds, longest %v, p99 %v", n, longest, p99)
	}
	h.add(time.Second)
	if _, _, p99 := h.summary(); p99 != time.Second {
		t.Errorf("p99 is %v; the bound of its bucket is above the longest", p99)
	}
}
