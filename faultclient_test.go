package litestream_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"

	"example.com/litestream"
)

// errInjected is what a faultClient fails with unless told otherwise.
var errInjected = errors.New("injected client failure")

// errIteration makes a listing succeed and its iterator end early with an
// error.
var errIteration = errors.New("injected iteration failure")

// clientCall is one call of a method of a ReplicaClient.
type clientCall struct {
	ctx    context.Context
	method string
	n      int // of this method, from 1 on since the last reset
}

// faultClient passes calls on to another client, counts them, and fails those
// for which its hook returns an error. A write that it fails has read nothing.
// The hook may block.
type faultClient struct {
	litestream.ReplicaClient

	mu    sync.Mutex // guards:
	calls map[string]int
	hook  func(clientCall) error
}

func newFaultClient(inner litestream.ReplicaClient) *faultClient {
	return &faultClient{ReplicaClient: inner, calls: make(map[string]int)}
}

// setHook makes hook decide about every later call; nil lets all pass.
func (c *faultClient) setHook(hook func(clientCall) error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hook, c.calls = hook, make(map[string]int)
}

// failAt fails the nth of the later calls of a method, and no other.
func (c *faultClient) failAt(method string, n int, err error) {
	c.setHook(func(call clientCall) error {
		if call.method == method && call.n == n {
			return err
		}
		return nil
	})
}

// failOn fails every later call of the methods; without any, of all methods.
func (c *faultClient) failOn(err error, methods ...string) {
	c.setHook(func(call clientCall) error {
		if len(methods) == 0 || slices.Contains(methods, call.method) {
			return err
		}
		return nil
	})
}

// hangOn makes calls of a method wait until their context ends. The channel
// receives the first of them.
func (c *faultClient) hangOn(method string) <-chan struct{} {
	hung := make(chan struct{}, 1)
	c.setHook(func(call clientCall) error {
		if call.method != method {
			return nil
		}
		select {
		case hung <- struct{}{}:
		default:
		}
		<-call.ctx.Done()
		return call.ctx.Err()
	})
	return hung
}

// count returns how often methods were called since the last reset; without
// any, all of them.
func (c *faultClient) count(methods ...string) (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for method, calls := range c.calls {
		if len(methods) == 0 || slices.Contains(methods, method) {
			n += calls
		}
	}
	return n
}

func (c *faultClient) next(ctx context.Context, method string) error {
	c.mu.Lock()
	c.calls[method]++
	call, hook := clientCall{ctx, method, c.calls[method]}, c.hook
	c.mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(call)
}

func (c *faultClient) Generations(ctx context.Context) ([]string, error) {
	if err := c.next(ctx, "Generations"); err != nil {
		return nil, err
	}
	return c.ReplicaClient.Generations(ctx)
}

func (c *faultClient) DeleteGeneration(ctx context.Context, generation string) error {
	if err := c.next(ctx, "DeleteGeneration"); err != nil {
		return err
	}
	return c.ReplicaClient.DeleteGeneration(ctx, generation)
}

func (c *faultClient) Snapshots(ctx context.Context, generation string) (litestream.SnapshotIterator, error) {
	err := c.next(ctx, "Snapshots")
	if err != nil && !errors.Is(err, errIteration) {
		return nil, err
	}
	itr, ierr := c.ReplicaClient.Snapshots(ctx, generation)
	if ierr == nil && err != nil {
		itr = failingSnapshots{itr}
	}
	return itr, ierr
}

func (c *faultClient) WriteSnapshot(ctx context.Context, generation string, index int, r io.Reader) (litestream.SnapshotInfo, error) {
	if err := c.next(ctx, "WriteSnapshot"); err != nil {
		return litestream.SnapshotInfo{}, err
	}
	return c.ReplicaClient.WriteSnapshot(ctx, generation, index, r)
}

func (c *faultClient) DeleteSnapshot(ctx context.Context, generation string, index int) error {
	if err := c.next(ctx, "DeleteSnapshot"); err != nil {
		return err
	}
	return c.ReplicaClient.DeleteSnapshot(ctx, generation, index)
}

func (c *faultClient) SnapshotReader(ctx context.Context, generation string, index int) (io.ReadCloser, error) {
	if err := c.next(ctx, "SnapshotReader"); err != nil {
		return nil, err
	}
	return c.ReplicaClient.SnapshotReader(ctx, generation, index)
}

func (c *faultClient) WALSegments(ctx context.Context, generation string) (litestream.WALSegmentIterator, error) {
	err := c.next(ctx, "WALSegments")
	if err != nil && !errors.Is(err, errIteration) {
		return nil, err
	}
	itr, ierr := c.ReplicaClient.WALSegments(ctx, generation)
	if ierr == nil && err != nil {
		itr = failingSegments{itr}
	}
	return itr, ierr
}

func (c *faultClient) WriteWALSegment(ctx context.Context, pos litestream.Pos, r io.Reader) (litestream.WALSegmentInfo, error) {
	if err := c.next(ctx, "WriteWALSegment"); err != nil {
		return litestream.WALSegmentInfo{}, err
	}
	return c.ReplicaClient.WriteWALSegment(ctx, pos, r)
}

func (c *faultClient) DeleteWALSegments(ctx context.Context, a []litestream.Pos) error {
	if err := c.next(ctx, "DeleteWALSegments"); err != nil {
		return err
	}
	return c.ReplicaClient.DeleteWALSegments(ctx, a)
}

func (c *faultClient) WALSegmentReader(ctx context.Context, pos litestream.Pos) (io.ReadCloser, error) {
	if err := c.next(ctx, "WALSegmentReader"); err != nil {
		return nil, err
	}
	return c.ReplicaClient.WALSegmentReader(ctx, pos)
}

// failingSnapshots ends at once, with an error.
type failingSnapshots struct{ litestream.SnapshotIterator }

func (failingSnapshots) Next() bool { return false }
func (failingSnapshots) Err() error { return errIteration }

// failingSegments ends at once, with an error.
type failingSegments struct{ litestream.WALSegmentIterator }

func (failingSegments) Next() bool { return false }
func (failingSegments) Err() error { return errIteration }
