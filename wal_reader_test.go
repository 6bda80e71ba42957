package litestream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/iotest"
)

func TestReadWALFields_RealWALs(t *testing.T) {
	for _, pageSize := range realPageSizes {
		t.Run(fmt.Sprint(pageSize), func(t *testing.T) {
			subject := newWALSubject(t, pageSize)
			for range 3 {
				subject.exec("INSERT INTO t VALUES (randomblob(2000))")
			}
			b := subject.wal()
			last := b[len(b)-pageSize-WALFrameHeaderSize:]
			salt0, salt1, sum0, sum1, bo, hdr, frame, err := ReadWALFields(iotest.HalfReader(bytes.NewReader(b)), pageSize)
			if err != nil {
				t.Fatal(err)
			}
			if salt0 != binary.BigEndian.Uint32(b[16:]) || salt1 != binary.BigEndian.Uint32(b[20:]) {
				t.Fatalf("salts %08x %08x", salt0, salt1)
			}
			if sum0 != binary.BigEndian.Uint32(last[16:]) || sum1 != binary.BigEndian.Uint32(last[20:]) {
				t.Fatalf("checksum %08x %08x", sum0, sum1)
			}
			if (bo == binary.ByteOrder(binary.BigEndian)) != nativeBigEndian {
				t.Fatalf("byte order %s", bo)
			}
			if !bytes.Equal(hdr, b[:WALHeaderSize]) || !bytes.Equal(frame, last) {
				t.Fatal("header or last frame differ from the file")
			}
		})
	}
}

func TestReadWALFields_HeaderAlone(t *testing.T) {
	b := buildWAL(1024, true)
	salt0, salt1, sum0, sum1, bo, hdr, frame, err := ReadWALFields(bytes.NewReader(b), 1024)
	if err != nil {
		t.Fatal(err)
	}
	if salt0 != 0xfeedbeef || salt1 != 7 || bo != binary.ByteOrder(binary.BigEndian) || !bytes.Equal(hdr, b) || frame != nil {
		t.Fatalf("%x %x %s %x %x", salt0, salt1, bo, hdr, frame)
	}
	if sum0 != binary.BigEndian.Uint32(b[24:]) || sum1 != binary.BigEndian.Uint32(b[28:]) {
		t.Fatalf("checksum %08x %08x is not the header's", sum0, sum1)
	}
}

// PITFALLS row 14
func TestReadWALFields_EveryTruncationAndFlipIsAnError(t *testing.T) {
	good := buildWAL(512, false, -1, 2, -3)
	n := WALFrameHeaderSize + 512
	for i := range good {
		whole := i >= WALHeaderSize && (i-WALHeaderSize)%n == 0
		_, _, _, _, _, _, _, err := ReadWALFields(bytes.NewReader(good[:i]), 512)
		if whole && err != nil {
			t.Fatalf("first %d bytes, whole frames: %v", i, err)
		} else if !whole && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("first %d bytes: %v, want io.ErrUnexpectedEOF", i, err)
		}
		b := bytes.Clone(good)
		b[i] ^= 2
		salt0, salt1, sum0, sum1, bo, hdr, frame, err := ReadWALFields(bytes.NewReader(b), 512)
		if err == nil {
			t.Fatalf("flipped byte %d: no error", i)
		}
		if salt0 != 0 || salt1 != 0 || sum0 != 0 || sum1 != 0 || bo != nil || hdr != nil || frame != nil {
			t.Fatalf("flipped byte %d: results beside the error", i)
		}
	}
}

func TestReadWALFields_Errors(t *testing.T) {
	good := buildWAL(512, false, -1, -2)
	n := WALFrameHeaderSize + 512
	dropped := append(bytes.Clone(good[:WALHeaderSize]), good[WALHeaderSize+n:]...)
	doubled := append(bytes.Clone(good), good[WALHeaderSize+n:]...)
	broken := errors.New("broken")
	for name, tt := range map[string]struct {
		r        io.Reader
		pageSize int
		is       error // nil: any
	}{
		"other page size":         {bytes.NewReader(good), 1024, nil},
		"frame dropped":           {bytes.NewReader(dropped), 512, errBrokenChain},
		"frame doubled":           {bytes.NewReader(doubled), 512, errBrokenChain},
		"one byte more":           {bytes.NewReader(append(bytes.Clone(good), 0)), 512, io.ErrUnexpectedEOF},
		"reader fails in header":  {io.MultiReader(bytes.NewReader(good[:9]), iotest.ErrReader(broken)), 512, broken},
		"reader fails at a frame": {io.MultiReader(bytes.NewReader(good), iotest.ErrReader(broken)), 512, broken},
		"reader fails in a frame": {io.MultiReader(bytes.NewReader(good[:100]), iotest.ErrReader(broken)), 512, broken},
	} {
		if _, _, _, _, _, _, _, err := ReadWALFields(tt.r, tt.pageSize); err == nil || !errors.Is(err, tt.is) && tt.is != nil {
			t.Errorf("%s: %v, want %v", name, err, tt.is)
		}
	}
}

// What SQLite leaves behind the tip of a restarted WAL is not part of it.
func TestReadWALFields_StaleFramesAreAnError(t *testing.T) {
	subject := newWALSubject(t, 4096)
	for range 5 {
		subject.exec("INSERT INTO t VALUES (randomblob(9000))")
	}
	subject.exec("PRAGMA wal_checkpoint(RESTART)")
	subject.exec("INSERT INTO t VALUES (1)")
	b := subject.wal()
	tip := scanWAL(t, b).tip
	if _, _, _, _, _, _, _, err := ReadWALFields(bytes.NewReader(b), 4096); !errors.Is(err, errBrokenChain) {
		t.Fatalf("whole file: %v, want errBrokenChain", err)
	}
	if _, _, sum0, sum1, _, _, _, err := ReadWALFields(bytes.NewReader(b[:tip.offset]), 4096); err != nil || sum0 != tip.sum1 || sum1 != tip.sum2 {
		t.Fatalf("up to the tip: %08x %08x, %v", sum0, sum1, err)
	}
}
