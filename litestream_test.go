package litestream

import (
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"testing"
)

func TestIsGenerationName(t *testing.T) {
	for s, want := range map[string]bool{
		"0123456789abcdef":    true,
		"0000000000000000":    true,
		"":                    false,
		"0123456789abcde":     false,
		"0123456789abcdef0":   false,
		"0123456789abcdeF":    false,
		"0123456789abcdeg":    false,
		"../../../../../..":   false,
		"0123456789abcd/f":    false,
		"0123456789abc\x00ef": false,
		"日本語日本":               false,
	} {
		if got := IsGenerationName(s); got != want {
			t.Errorf("%q: %t", s, got)
		}
	}
}

func TestNewGenerationName_IsValidAndNew(t *testing.T) {
	seen := map[string]bool{}
	for range 1000 {
		s := newGenerationName()
		if !IsGenerationName(s) || seen[s] {
			t.Fatalf("generation name %q is invalid or drawn twice", s)
		}
		seen[s] = true
	}
}

// PITFALLS row 40
func TestParseIndex_Limits(t *testing.T) {
	maxInt := fmt.Sprintf("%016x", math.MaxInt)
	aboveMaxInt := fmt.Sprintf("%016x", uint64(math.MaxInt)+1)
	for _, tt := range []struct {
		s    string
		want int
	}{
		{"0000000000000000", 0},
		{"00000000000003e8", 1000},
		{"000000007fffffff", MaxIndex},
		{maxInt, math.MaxInt},
	} {
		if got, err := ParseIndex(tt.s); err != nil || got != tt.want {
			t.Errorf("parse %q: %d, %v; want %d", tt.s, got, err, tt.want)
		}
		if got := FormatIndex(tt.want); got != tt.s {
			t.Errorf("format %d: %q, want %q", tt.want, got, tt.s)
		}
	}
	for _, s := range []string{"", "0", "3e8", aboveMaxInt, "8000000000000000", "ffffffffffffffff", "000000000000000g", "00000000000003E8", "-000000000000001", "+000000000000001", "0x00000000000001", "0000_0000_000001", "00000000000003e8 ", "00000000000000000"} {
		if got, err := ParseIndex(s); err == nil || got != 0 || !strings.Contains(err.Error(), fmt.Sprintf("%q", s)) {
			t.Errorf("parse %q: %d, %v; want an error that names it", s, got, err)
		}
	}
}

// PITFALLS row 40
func TestParseOffset_Limits(t *testing.T) {
	for _, tt := range []struct {
		s    string
		want int64
	}{
		{"0000000000000000", 0},
		{"0000000000000020", 32},
		{"0000000080000000", 1 << 31},
		{"7fffffffffffffff", math.MaxInt64},
	} {
		if got, err := ParseOffset(tt.s); err != nil || got != tt.want {
			t.Errorf("parse %q: %d, %v; want %d", tt.s, got, err, tt.want)
		}
		if got := FormatOffset(tt.want); got != tt.s {
			t.Errorf("format %d: %q, want %q", tt.want, got, tt.s)
		}
	}
	for _, s := range []string{"", "20", "8000000000000000", "ffffffffffffffff", "000000000000002G", "-000000000000001", "00000000000000200"} {
		if got, err := ParseOffset(s); err == nil || got != 0 || !strings.Contains(err.Error(), fmt.Sprintf("%q", s)) {
			t.Errorf("parse %q: %d, %v; want an error that names it", s, got, err)
		}
	}
}

func TestChecksumError_MatchesBothCauses(t *testing.T) {
	pos := Pos{Generation: testGeneration, Index: 2, Offset: 32}
	err := fmt.Errorf("restore: %w", &ChecksumError{Path: "x.wal.lz4", Pos: pos, Err: io.ErrUnexpectedEOF})
	if !errors.Is(err, ErrChecksumMismatch) || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v does not match its causes", err)
	}
	for _, part := range []string{"x.wal.lz4", pos.String(), io.ErrUnexpectedEOF.Error()} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q does not contain %q", err, part)
		}
	}
	bare := &ChecksumError{Path: "y", Pos: pos}
	if !errors.Is(bare, ErrChecksumMismatch) || errors.Is(bare, io.EOF) || !strings.Contains(bare.Error(), "y: ") {
		t.Errorf("without a cause: %v", bare)
	}
	placeless := &ChecksumError{Path: "z", Err: io.ErrUnexpectedEOF}
	if got, want := placeless.Error(), "z: checksum mismatch: unexpected EOF"; got != want {
		t.Errorf("without a position: %q, want %q", got, want)
	}
}
