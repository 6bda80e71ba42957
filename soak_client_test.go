package litestream_test

import (
	"context"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"example.com/litestream"
)

// flakyClient fails calls of another client at random: at once, after a hang,
// in the middle of what is written or read, or after it was done. It keeps to
// the contract of ReplicaClient, as far as its inner client does.
type flakyClient struct {
	litestream.ReplicaClient
	on     atomic.Bool
	faults atomic.Int64

	mu  sync.Mutex // guards:
	rnd *rand.Rand
}

// flakyHang is the longest time for which a call hangs.
const flakyHang = 500 * time.Millisecond

type flakyFault int

const (
	flakyNone flakyFault = iota
	flakyError
	flakyHanging
	flakyTorn // fails in the middle
	flakyDone // does it, and fails
	flakyKinds
)

// draw returns a fault, or none with most calls. n is a number for the fault
// to depend on.
func (c *flakyClient) draw() (fault flakyFault, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n = c.rnd.Int64N(1 << 40)
	if c.rnd.IntN(7) == 0 && c.on.Load() {
		fault = 1 + flakyFault(c.rnd.IntN(int(flakyKinds)-1))
		c.faults.Add(1)
	}
	return fault, n
}

// call fails before or after fn, or not at all.
func (c *flakyClient) call(ctx context.Context, fn func() error) error {
	fault, n := c.draw()
	switch fault {
	case flakyNone:
		return fn()
	case flakyHanging:
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(n) % flakyHang):
		}
	case flakyDone:
		if err := fn(); err != nil {
			return err
		}
	}
	return errInjected
}

// flakyReader fails after some bytes.
type flakyReader struct {
	io.Reader
	left int64
}

func (r *flakyReader) Read(p []byte) (int, error) {
	if r.left <= 0 {
		return 0, errInjected
	}
	n, err := r.Reader.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	return n, err
}

// flakyMiddle is how many bytes of a body pass at most before it fails.
const flakyMiddle = 20_000

func (c *flakyClient) write(ctx context.Context, r io.Reader, fn func(r io.Reader) error) error {
	fault, n := c.draw()
	switch fault {
	case flakyNone:
		return fn(r)
	case flakyTorn:
		return fn(&flakyReader{r, n % flakyMiddle}) // the inner client keeps none of it
	case flakyHanging:
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(n) % flakyHang):
			return errInjected
		}
	case flakyDone:
		if err := fn(r); err != nil {
			return err
		}
	}
	return errInjected
}

func (c *flakyClient) read(ctx context.Context, fn func() (io.ReadCloser, error)) (rc io.ReadCloser, err error) {
	fault, n := c.draw()
	if fault == flakyTorn {
		if rc, err = fn(); err != nil {
			return nil, err
		}
		return struct {
			io.Reader
			io.Closer
		}{&flakyReader{rc, n % flakyMiddle}, rc}, nil
	}
	if fault == flakyError {
		return nil, errInjected
	}
	return fn()
}

func (c *flakyClient) Generations(ctx context.Context) (a []string, err error) {
	err = c.call(ctx, func() (err error) { a, err = c.ReplicaClient.Generations(ctx); return err })
	return a, err
}

func (c *flakyClient) DeleteGeneration(ctx context.Context, generation string) error {
	return c.call(ctx, func() error { return c.ReplicaClient.DeleteGeneration(ctx, generation) })
}

func (c *flakyClient) Snapshots(ctx context.Context, generation string) (itr litestream.SnapshotIterator, err error) {
	if fault, _ := c.draw(); fault == flakyTorn {
		itr, err = c.ReplicaClient.Snapshots(ctx, generation)
		if err != nil {
			return nil, err
		}
		return failingSnapshots{itr}, nil
	} else if fault != flakyNone {
		return nil, errInjected
	}
	return c.ReplicaClient.Snapshots(ctx, generation)
}

func (c *flakyClient) WriteSnapshot(ctx context.Context, generation string, index int, r io.Reader) (info litestream.SnapshotInfo, err error) {
	err = c.write(ctx, r, func(r io.Reader) (err error) {
		info, err = c.ReplicaClient.WriteSnapshot(ctx, generation, index, r)
		return err
	})
	return info, err
}

func (c *flakyClient) DeleteSnapshot(ctx context.Context, generation string, index int) error {
	return c.call(ctx, func() error { return c.ReplicaClient.DeleteSnapshot(ctx, generation, index) })
}

func (c *flakyClient) SnapshotReader(ctx context.Context, generation string, index int) (io.ReadCloser, error) {
	return c.read(ctx, func() (io.ReadCloser, error) { return c.ReplicaClient.SnapshotReader(ctx, generation, index) })
}

func (c *flakyClient) WALSegments(ctx context.Context, generation string) (itr litestream.WALSegmentIterator, err error) {
	if fault, _ := c.draw(); fault == flakyTorn {
		itr, err = c.ReplicaClient.WALSegments(ctx, generation)
		if err != nil {
			return nil, err
		}
		return failingSegments{itr}, nil
	} else if fault != flakyNone {
		return nil, errInjected
	}
	return c.ReplicaClient.WALSegments(ctx, generation)
}

func (c *flakyClient) WriteWALSegment(ctx context.Context, pos litestream.Pos, r io.Reader) (info litestream.WALSegmentInfo, err error) {
	err = c.write(ctx, r, func(r io.Reader) (err error) {
		info, err = c.ReplicaClient.WriteWALSegment(ctx, pos, r)
		return err
	})
	return info, err
}

func (c *flakyClient) DeleteWALSegments(ctx context.Context, a []litestream.Pos) error {
	fault, n := c.draw()
	if fault == flakyTorn && len(a) > 0 { // a part of them is gone
		if err := c.ReplicaClient.DeleteWALSegments(ctx, a[:n%int64(len(a))]); err != nil {
			return err
		}
	} else if fault == flakyNone {
		return c.ReplicaClient.DeleteWALSegments(ctx, a)
	}
	return errInjected
}

func (c *flakyClient) WALSegmentReader(ctx context.Context, pos litestream.Pos) (io.ReadCloser, error) {
	return c.read(ctx, func() (io.ReadCloser, error) { return c.ReplicaClient.WALSegmentReader(ctx, pos) })
}
