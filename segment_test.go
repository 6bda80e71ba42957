package litestream

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
)

func compressSegment(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	zw := newSegmentWriter(&buf)
	defer releaseSegmentWriter(zw)
	if _, err := zw.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func decompressFrame(b []byte) ([]byte, error) {
	r := newFrameReader(io.NopCloser(bytes.NewReader(b)))
	defer r.Close()
	return io.ReadAll(r)
}

func sourceOf(b []byte) segmentSource {
	return segmentSource{size: int64(len(b)), open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b)), nil
	}}
}

func randomBytes(n int) []byte {
	rnd := rand.New(rand.NewPCG(1, uint64(n)))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.IntN(4)) // compressible
	}
	return b
}

func TestSegment_JoinEqualsConcatenation(t *testing.T) {
	sizes := []int{1, 32, 4152, segmentBlockSize, segmentBlockSize + 1, 300_000}
	var want []byte
	var sources []segmentSource
	for _, n := range sizes {
		b := randomBytes(n)
		z := compressSegment(t, b)
		if string(z[:len(segmentHeader)]) != segmentHeader {
			t.Fatalf("header of a %d byte segment is %x, want %x", n, z[:len(segmentHeader)], segmentHeader)
		}
		if string(z[len(z)-len(segmentEndMark):]) != segmentEndMark {
			t.Fatalf("a %d byte segment ends in %x", n, z[len(z)-4:])
		}
		want = append(want, b...)
		sources = append(sources, sourceOf(z))
	}
	j := joinSegments(sources)
	z, err := io.ReadAll(j)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := decompressFrame(z); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("joined segments decompress to %d bytes, %v; want %d", len(got), err, len(want))
	}
}

func TestSegment_JoinRefusesWhatItCannotJoin(t *testing.T) {
	good := compressSegment(t, randomBytes(5000))
	for name, bad := range map[string][]byte{
		"empty":      nil,
		"other":      []byte("0123456789abcdef"),
		"no mark":    good[:len(good)-4],
		"cut":        good[:len(good)-1],
		"extra byte": append(append([]byte{}, good...), 1),
	} {
		t.Run(name, func(t *testing.T) {
			j := joinSegments([]segmentSource{sourceOf(good), sourceOf(bad), sourceOf(good)})
			defer j.Close()
			if _, err := io.ReadAll(j); !errors.Is(err, errNotJoinable) {
				t.Fatalf("join: %v, want errNotJoinable", err)
			}
		})
	}
	t.Run("nothing", func(t *testing.T) {
		j := joinSegments(nil)
		defer j.Close()
		if b, err := io.ReadAll(j); err == nil {
			t.Fatalf("join of nothing: %x without error", b)
		}
	})
	t.Run("read error behind the end mark", func(t *testing.T) {
		broken := errors.New("disk on fire")
		j := joinSegments([]segmentSource{{size: int64(len(good)), open: func() (io.ReadCloser, error) {
			return io.NopCloser(io.MultiReader(bytes.NewReader(good), iotest.ErrReader(broken))), nil
		}}})
		defer j.Close()
		if _, err := io.ReadAll(j); !errors.Is(err, broken) {
			t.Fatalf("join: %v, want the error of the read", err)
		}
	})
	t.Run("shorter than its size", func(t *testing.T) {
		src := sourceOf(good)
		src.size += 100
		j := joinSegments([]segmentSource{src})
		defer j.Close()
		if _, err := io.ReadAll(j); err == nil {
			t.Fatal("join of a short source: no error")
		}
	})
}

// Each prefix of a segment must fail to read: an LZ4 decoder that takes the
// end of its input for the end of the frame would lose commits silently.
func TestFrameReader_EveryTruncationIsAnError(t *testing.T) {
	z := compressSegment(t, randomBytes(3000))
	for n := range z {
		if _, err := decompressFrame(z[:n]); err == nil {
			t.Fatalf("first %d of %d bytes read without error", n, len(z))
		}
	}
	for i := range z {
		b := bytes.Clone(z)
		b[i] ^= 0x10
		if got, err := decompressFrame(b); err == nil && !bytes.Equal(got, randomBytes(3000)) {
			t.Fatalf("flip of byte %d read as other data without error", i)
		}
	}
}
