package replicatest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"example.com/litestream"
)

// errSource is how the source of a write fails.
var errSource = errors.New("the source of the write failed")

// lookTime is how long a reader waits for what others do meanwhile. A client
// that makes them wait for the end of the write is not tested by it.
const lookTime = time.Second

func testWrite(t *testing.T, s *storage, k *kind) {
	want := map[litestream.Pos][]byte{}
	for i, pos := range k.positions {
		want[pos] = body(i, 1000*i+1)
		s.mustWrite(t, k, pos, want[pos]).check(t, pos, len(want[pos]))
		s.mustHold(t, k, want)
	}
}

func testWriteReadsAnyReader(t *testing.T, s *storage, k *kind) {
	data := body(1, 10_000)
	inTheMiddle := bytes.NewReader(append(body(2, 100), data...))
	if _, err := inTheMiddle.Seek(100, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	pr, pw := io.Pipe()
	piped := make(chan error, 1)
	go func() {
		_, err := pw.Write(data)
		piped <- errors.Join(err, pw.Close())
	}()
	want := map[litestream.Pos][]byte{}
	for i, test := range []struct {
		name string
		r    io.Reader
	}{
		{"one byte at a time", iotest.OneByteReader(bytes.NewReader(data))},
		{"io.EOF with the last bytes", iotest.DataErrReader(bytes.NewReader(data))},
		{"reads of nothing", &lazyReader{r: bytes.NewReader(data)}},
		{"a pipe", pr},
		{"a seekable reader that was read from", inTheMiddle},
		{"a buffer", bytes.NewBuffer(bytes.Clone(data))},
	} {
		pos := k.at(i)
		o, err := k.write(t.Context(), s.client, pos, test.r)
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		o.check(t, pos, len(data))
		want[pos] = data
		s.mustHold(t, k, want)
		if t.Failed() {
			t.Fatalf("after %s", test.name)
		}
	}
	if err := <-piped; err != nil {
		t.Errorf("the pipe was not read to its end: %v", err)
	}
}

// lazyReader returns 0, nil from each other read.
type lazyReader struct {
	r io.Reader
	n int
}

func (r *lazyReader) Read(p []byte) (int, error) {
	if r.n++; r.n%2 == 1 {
		return 0, nil
	}
	return r.r.Read(p)
}

func testWriteEmpty(t *testing.T, s *storage, k *kind) {
	pos := k.at(1)
	s.mustWrite(t, k, pos, nil).check(t, pos, 0)
	s.mustHold(t, k, map[litestream.Pos][]byte{pos: {}})
}

func testWriteLarge(t *testing.T, s *storage, k *kind) {
	pos, data := k.at(1), body(1, sizes(17<<20, 1<<20)+1)
	s.mustWrite(t, k, pos, data).check(t, pos, len(data))
	s.mustHold(t, k, map[litestream.Pos][]byte{pos: data})
}

func testWriteReplaces(t *testing.T, s *storage, k *kind) {
	want := map[litestream.Pos][]byte{k.at(0): []byte("before"), k.at(2): []byte("behind")}
	for pos, data := range want {
		s.mustWrite(t, k, pos, data)
	}
	pos := k.at(1)
	for i, n := range []int{1000, 100_000, 10, 10, 0, 1} {
		want[pos] = body(i, n)
		s.mustWrite(t, k, pos, want[pos]).check(t, pos, n)
		s.mustHold(t, k, want)
	}
}

// readFunc is an io.Reader.
type readFunc func(p []byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }

func testWriteIsInvisibleUntilItEnds(t *testing.T, s *storage, k *kind) {
	data := body(1, 300_000)
	for i, old := range [][]byte{nil, body(2, 1000)} {
		pos := k.at(1)
		pos.Generation = []string{gen1, gen2}[i]
		var before [][]byte
		if old != nil {
			s.mustWrite(t, k, pos, old)
			before = append(before, old)
		}
		var looks sync.WaitGroup
		r, read, looked := bytes.NewReader(data), 0, 0
		_, err := k.write(t.Context(), s.client, pos, readFunc(func(p []byte) (int, error) {
			if half := len(data) / 2; looked == 0 && read >= half || looked == 1 && r.Len() == 0 {
				looked++
				faults := make(chan []string, 1)
				looks.Go(func() { faults <- s.parts(t.Context(), k, pos, before...) })
				select {
				case a := <-faults:
					for _, fault := range a {
						t.Errorf("%d bytes of %d read: %s", read, len(data), fault)
					}
				case <-time.After(lookTime):
				}
			}
			n, err := r.Read(p[:min(len(p), 16<<10)])
			read += n
			return n, err
		}))
		looks.Wait()
		if err != nil {
			t.Fatal(err)
		}
		s.mustHold(t, k, map[litestream.Pos][]byte{pos: data})
	}
}

func testFailedWriteLeavesNoPart(t *testing.T, s *storage, k *kind) {
	n := 0
	for _, size := range []int{0, 100, 1<<20 + 1} {
		for _, cause := range []error{errSource, io.ErrUnexpectedEOF} {
			for _, withData := range []bool{false, true} {
				for _, existed := range []bool{false, true} {
					n++
					pos := k.at(1)
					pos.Generation = fmt.Sprintf("%016x", n)
					var before [][]byte
					if existed {
						before = append(before, body(n, 500))
						s.mustWrite(t, k, pos, before[0])
					}
					r := io.MultiReader(bytes.NewReader(body(-n, size)), iotest.ErrReader(cause))
					if withData {
						r = &failingReader{data: body(-n, size), err: cause}
					}
					if _, err := k.write(t.Context(), s.client, pos, plainReader{r}); err == nil {
						t.Errorf("the reader failed with %q after %d bytes, and the write reports success", cause, size)
					}
					s.mustHoldWhole(t, k, pos, before...)
				}
			}
		}
	}
	pos := k.at(1)
	pos.Generation = fmt.Sprintf("%016x", n)
	s.mustWrite(t, k, pos, []byte("works again"))
	s.mustHold(t, k, map[litestream.Pos][]byte{pos: []byte("works again")})
}

// failingReader returns its error together with the last bytes.
type failingReader struct {
	data []byte
	err  error
}

func (r *failingReader) Read(p []byte) (n int, err error) {
	n = copy(p, r.data)
	if r.data = r.data[n:]; len(r.data) == 0 {
		err = r.err
	}
	return n, err
}

func testCancelledWriteLeavesNoPart(t *testing.T, s *storage, k *kind) {
	for i, existed := range []bool{false, true} {
		pos := k.at(1)
		pos.Generation = []string{gen1, gen2}[i]
		var before [][]byte
		if existed {
			before = append(before, body(i, 500))
			s.mustWrite(t, k, pos, before[0])
		}
		for what, ended := range endedContexts(t) {
			_, err := k.write(ended, s.client, pos, bytes.NewReader(body(1, 100)))
			mustMatchContext(t, "write", what, ended, err)
			s.mustHoldWhole(t, k, pos, before...)
		}

		ctx, cancel := context.WithCancel(t.Context())
		r := &endlessReader{cancel: cancel}
		var err error
		within(t, "a write whose context ended", func() { _, err = k.write(ctx, s.client, pos, r) })
		cancel()
		mustMatchContext(t, "write", "cancelled meanwhile", ctx, err)
		if r.late.Load() >= endlessReads {
			t.Errorf("the write read on for %d reads after its context had ended", endlessReads)
		}
		s.mustHoldWhole(t, k, pos, before...)

		// Cancelled with the last read: it may succeed or fail.
		ctx, cancel = context.WithCancel(t.Context())
		data := body(3, 1000)
		_, err = k.write(ctx, s.client, pos, io.MultiReader(bytes.NewReader(data), readFunc(func([]byte) (int, error) {
			cancel()
			return 0, io.EOF
		})))
		cancel()
		if err == nil {
			before = nil
		}
		s.mustHoldWhole(t, k, pos, append(before, data)...)
		if err == nil {
			s.mustHold(t, k, map[litestream.Pos][]byte{pos: data})
		}
	}
}

// endlessReads is how often a client may read on after its context ended,
// until it has seen that. Each of these reads takes a millisecond.
const endlessReads = 2000

// endlessReader ends the context at its third read, and goes on.
type endlessReader struct {
	cancel func()
	reads  atomic.Int64
	late   atomic.Int64
}

func (r *endlessReader) Read(p []byte) (int, error) {
	switch n := r.reads.Add(1); {
	case n == 3:
		r.cancel()
	case n > 3:
		if r.late.Add(1) >= endlessReads {
			return 0, errSource
		}
		time.Sleep(time.Millisecond)
	}
	return copy(p, "endless "), nil
}

// endedContexts returns contexts that have ended.
func endedContexts(t *testing.T) map[string]context.Context {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Hour))
	t.Cleanup(cancel)
	return map[string]context.Context{"cancelled before": cancelled, "with a deadline that is over": late}
}

func mustMatchContext(t *testing.T, call, what string, ctx context.Context, err error) {
	t.Helper()
	if !errors.Is(err, ctx.Err()) {
		t.Errorf("%s, %s: error is %v, want one that matches %v", call, what, err, ctx.Err())
	}
}

// While a read is under way the client must not return, however much its
// context has ended: the caller frees what the reader uses.
func testWriteDoesNotRetainReader(t *testing.T, s *storage, k *kind) {
	for _, cancelled := range []bool{true, false} {
		ctx, cancel := context.WithCancel(t.Context())
		returned := make(chan struct{})
		var reads, reading, retained atomic.Int64
		r := readFunc(func(p []byte) (int, error) {
			reading.Add(1)
			defer reading.Add(-1)
			select {
			case <-returned:
				retained.Add(1)
				return 0, errSource
			default:
			}
			switch reads.Add(1) {
			case 1:
				return copy(p, "first"), nil
			case 2:
				if cancelled {
					cancel()
					select {
					case <-returned:
					case <-time.After(lookTime):
					}
				}
				return copy(p, "second"), nil
			}
			return 0, io.EOF
		})
		var err error
		within(t, "write", func() {
			defer close(returned)
			_, err = k.write(ctx, s.client, k.at(1), r)
			retained.Add(reading.Load())
		})
		cancel()
		if !cancelled && err != nil {
			t.Error(err)
		}
		if reads.Load() == 1 {
			t.Error("the reader was not read to its end")
		}
		// What holds on to the reader has it now, or soon.
		if time.Sleep(lookTime / 10); retained.Load() > 0 {
			t.Errorf("the reader is used after the write returned %v", err)
		}
	}
}
