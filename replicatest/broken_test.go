package replicatest_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"example.com/litestream"
)

var errBroken = errors.New("broken client")

func segmentPos(generation string, index int) litestream.Pos {
	return litestream.Pos{Generation: generation, Index: index}
}

// brokenClients each break one promise: of writes or of readers here, of
// listings or deletions in brokenListings.
var brokenClients = slices.Concat([]brokenClient{
	{"nothing", "", false, func(*hooked) {}},
	{"stores what it read when the reader fails", "Snapshot/FailedWriteLeavesNoPart", true, func(c *hooked) {
		c.writeSnapshot = func(ctx context.Context, generation string, index int, r io.Reader) (litestream.SnapshotInfo, error) {
			var b bytes.Buffer
			_, err := io.Copy(&b, contextReader{ctx, r})
			if err != nil && ctx.Err() == nil {
				_, _ = c.MemClient.WriteSnapshot(ctx, generation, index, &b)
				return litestream.SnapshotInfo{}, err
			}
			return c.MemClient.WriteSnapshot(ctx, generation, index, io.MultiReader(&b, errReader{err}))
		}
	}},
	{"takes an unexpected end for the end", "WALSegment/FailedWriteLeavesNoPart", true, func(c *hooked) {
		c.writeWALSegment = func(ctx context.Context, pos litestream.Pos, r io.Reader) (litestream.WALSegmentInfo, error) {
			return c.MemClient.WriteWALSegment(ctx, pos, readFunc(func(p []byte) (int, error) {
				n, err := r.Read(p)
				if err == io.ErrUnexpectedEOF {
					err = io.EOF
				}
				return n, err
			}))
		}
	}},
	{"does not look at the context", "Snapshot/CancelledWriteLeavesNoPart", false, func(c *hooked) {
		c.writeSnapshot = func(ctx context.Context, generation string, index int, r io.Reader) (litestream.SnapshotInfo, error) {
			return c.MemClient.WriteSnapshot(context.WithoutCancel(ctx), generation, index, r)
		}
	}},
	{"returns while it still reads", "WALSegment/WriteDoesNotRetainReader", true, func(c *hooked) {
		c.writeWALSegment = func(ctx context.Context, pos litestream.Pos, r io.Reader) (info litestream.WALSegmentInfo, err error) {
			done := make(chan struct{})
			go func() {
				defer close(done)
				info, err = c.MemClient.WriteWALSegment(ctx, pos, r)
			}()
			select {
			case <-done:
				return info, err
			case <-ctx.Done():
				return litestream.WALSegmentInfo{}, ctx.Err()
			}
		}
	}},
	{"writes in place", "Snapshot/WriteIsInvisibleUntilItEnds", false, func(c *hooked) {
		c.writeSnapshot = func(ctx context.Context, generation string, index int, r io.Reader) (info litestream.SnapshotInfo, err error) {
			var all []byte
			for {
				p := make([]byte, 32<<10)
				n, rerr := r.Read(p)
				all = append(all, p[:n]...)
				if info, err = c.MemClient.WriteSnapshot(ctx, generation, index, bytes.NewReader(all)); err != nil {
					return info, err
				}
				if rerr == io.EOF {
					return info, nil
				} else if rerr != nil {
					return info, errors.Join(rerr, c.MemClient.DeleteSnapshot(ctx, generation, index))
				}
			}
		}
	}},
	{"gathers two writes in one place", "WALSegment/ConcurrentWritesOfOne", false, func(c *hooked) {
		c.writeWALSegment = func(ctx context.Context, pos litestream.Pos, r io.Reader) (litestream.WALSegmentInfo, error) {
			for first := true; ; first = false {
				p := make([]byte, 32<<10)
				n, err := contextReader{ctx, r}.Read(p)
				if err != nil && err != io.EOF {
					return litestream.WALSegmentInfo{}, err
				}
				temporary.append(pos, p[:n], first)
				if err == io.EOF {
					return c.MemClient.WriteWALSegment(ctx, pos, bytes.NewReader(temporary.take(pos)))
				}
			}
		}
	}},
	{"keeps the first", "Snapshot/WriteReplaces", false, func(c *hooked) {
		c.writeSnapshot = func(ctx context.Context, generation string, index int, r io.Reader) (litestream.SnapshotInfo, error) {
			if rc, err := c.MemClient.SnapshotReader(ctx, generation, index); err == nil {
				n, err := io.Copy(io.Discard, r)
				return litestream.SnapshotInfo{Generation: generation, Index: index, Size: n, CreatedAt: time.Now()}, errors.Join(err, rc.Close())
			}
			return c.MemClient.WriteSnapshot(ctx, generation, index, r)
		}
	}},
	{"rewinds what can seek", "WALSegment/WriteReadsAnyReader", true, func(c *hooked) {
		c.writeWALSegment = func(ctx context.Context, pos litestream.Pos, r io.Reader) (litestream.WALSegmentInfo, error) {
			if s, ok := r.(io.Seeker); ok {
				if _, err := s.Seek(0, io.SeekStart); err != nil {
					return litestream.WALSegmentInfo{}, err
				}
			}
			return c.MemClient.WriteWALSegment(ctx, pos, r)
		}
	}},
	{"has a limit", "Snapshot/WriteLarge", false, func(c *hooked) {
		c.writeSnapshot = func(ctx context.Context, generation string, index int, r io.Reader) (litestream.SnapshotInfo, error) {
			return c.MemClient.WriteSnapshot(ctx, generation, index, io.LimitReader(r, 1<<20))
		}
	}},
	{"refuses the empty", "WALSegment/WriteEmpty", false, func(c *hooked) {
		c.writeWALSegment = func(ctx context.Context, pos litestream.Pos, r io.Reader) (litestream.WALSegmentInfo, error) {
			var b bytes.Buffer
			if n, err := io.Copy(&b, contextReader{ctx, r}); n == 0 && err == nil {
				return litestream.WALSegmentInfo{}, errBroken
			} else if err != nil {
				return litestream.WALSegmentInfo{}, err
			}
			return c.MemClient.WriteWALSegment(ctx, pos, &b)
		}
	}},
	{"loses writes of others", "WALSegment/Concurrent", false, func(c *hooked) {
		// A manifest that is read, changed and written.
		c.writeWALSegment = func(ctx context.Context, pos litestream.Pos, r io.Reader) (litestream.WALSegmentInfo, error) {
			before := c.Clone()
			time.Sleep(time.Millisecond) // others write meanwhile: that is the fault
			info, err := c.MemClient.WriteWALSegment(ctx, pos, r)
			if err != nil || pos.Index != 0 || pos.Offset > 4*4152 {
				return info, err
			}
			for offset := int64(0); offset <= 4*4152; offset += 4152 {
				other := pos
				other.Offset = offset
				if rc, err := before.WALSegmentReader(ctx, other); err == nil {
					rc.Close()
				} else if other != pos {
					_ = c.MemClient.DeleteWALSegments(ctx, []litestream.Pos{other})
				}
			}
			return info, err
		}
	}},
	{"has its own error for what is missing", "Snapshot/ReadMissing", false, func(c *hooked) {
		c.snapshotReader = func(ctx context.Context, generation string, index int) (io.ReadCloser, error) {
			rc, err := c.MemClient.SnapshotReader(ctx, generation, index)
			if errors.Is(err, os.ErrNotExist) {
				err = fmt.Errorf("no such key: %s", litestream.FormatIndex(index))
			}
			return rc, err
		}
	}},
	{"finds nothing under an invalid name", "WALSegment/InvalidNames", true, func(c *hooked) {
		c.walSegmentReader = func(ctx context.Context, pos litestream.Pos) (io.ReadCloser, error) {
			if !litestream.IsGenerationName(pos.Generation) {
				return nil, os.ErrNotExist
			}
			return c.MemClient.WALSegmentReader(ctx, pos)
		}
	}},
	{"takes upper case", "Snapshot/InvalidNames", true, func(c *hooked) {
		c.writeSnapshot = func(ctx context.Context, generation string, index int, r io.Reader) (litestream.SnapshotInfo, error) {
			return c.MemClient.WriteSnapshot(ctx, strings.ToLower(generation), index, r)
		}
	}},
	{"reads on in the new one", "Snapshot/ReadWhileReplaced", false, func(c *hooked) {
		c.snapshotReader = func(ctx context.Context, generation string, index int) (io.ReadCloser, error) {
			rc, err := c.MemClient.SnapshotReader(ctx, generation, index)
			if err != nil {
				return nil, err
			}
			offset := int64(0)
			return io.NopCloser(readFunc(func(p []byte) (int, error) {
				now, err := c.MemClient.SnapshotReader(ctx, generation, index)
				if err != nil {
					return 0, err
				}
				defer now.Close()
				if _, err := io.CopyN(io.Discard, now, offset); err != nil {
					return 0, err
				}
				n, err := now.Read(p)
				offset += int64(n)
				return n, err
			})), rc.Close()
		}
	}},
	{"ends a cancelled body as if it were whole", "WALSegment/ReadCancelled", true, func(c *hooked) {
		c.walSegmentReader = func(ctx context.Context, pos litestream.Pos) (io.ReadCloser, error) {
			rc, err := c.MemClient.WALSegmentReader(ctx, pos)
			if err != nil {
				return nil, err
			}
			return struct {
				io.Reader
				io.Closer
			}{readFunc(func(p []byte) (int, error) {
				n, err := rc.Read(p)
				if errors.Is(err, context.Canceled) {
					err = io.EOF
				}
				return n, err
			}), rc}, nil
		}
	}},
	{"has one cursor for all readers", "Snapshot/Read", false, func(c *hooked) {
		readers := map[litestream.Pos]io.ReadCloser{}
		c.snapshotReader = func(ctx context.Context, generation string, index int) (io.ReadCloser, error) {
			pos := segmentPos(generation, index)
			rc, err := c.MemClient.SnapshotReader(ctx, generation, index)
			temporary.mu.Lock()
			defer temporary.mu.Unlock()
			if readers[pos] == nil && err == nil {
				readers[pos] = rc
			}
			if err != nil {
				return nil, err
			}
			return io.NopCloser(readers[pos]), nil
		}
	}},
}, brokenListings)

// brokenClient breaks a client and says which subtest must find it, and
// whether no other does.
type brokenClient struct {
	name  string
	fails string
	alone bool
	spoil func(*hooked)
}

// temporary holds unfinished bodies.
var temporary = &temporaries{bodies: map[litestream.Pos][]byte{}}

type temporaries struct {
	mu     sync.Mutex // guards:
	bodies map[litestream.Pos][]byte
}

func (t *temporaries) append(pos litestream.Pos, p []byte, first bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if first {
		t.bodies[pos] = nil
	}
	t.bodies[pos] = append(t.bodies[pos], p...)
}

func (t *temporaries) take(pos litestream.Pos) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.bodies[pos])
}

type readFunc func(p []byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

// errReader fails, or ends if err is nil.
type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) {
	if r.err == nil {
		return 0, io.EOF
	}
	return 0, r.err
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
