package streamhttp

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"

	"example.com/litestream"
)

// Headers of a response.
const (
	// VersionHeader names the version of the protocol, "1". A request has it
	// too.
	VersionHeader = "Litestream-Stream-Version"

	// PageSizeHeader is the page size of the database in bytes.
	PageSizeHeader = "Litestream-Page-Size"
)

// ContentType is the media type of a stream.
const ContentType = "application/vnd.litestream.stream"

const (
	protocolVersion = "1"

	nameParam = "db"
	posParam  = "pos"

	maxQuery = 4 << 10 // bytes, as sent
)

// streamRequest is what a follower asks for.
type streamRequest struct {
	name string
	pos  litestream.Pos
}

// query returns the URL query that asks for it.
func (q streamRequest) query() string {
	v := url.Values{nameParam: {q.name}}
	if !q.pos.IsZero() {
		v.Set(posParam, q.pos.String())
	}
	return v.Encode()
}

// parseRequest accepts what a Client sends, and what is written by hand in the
// same way. Its errors are fit for the client's eyes.
func parseRequest(r *http.Request) (q streamRequest, err error) {
	if v, ok := r.Header[VersionHeader]; ok && (len(v) != 1 || v[0] != protocolVersion) {
		return q, fmt.Errorf("protocol version %q is not supported: want %s", v, protocolVersion)
	}
	if r.ContentLength != 0 {
		return q, errors.New("a request must not have a body")
	}
	if len(r.URL.RawQuery) > maxQuery {
		return q, fmt.Errorf("query is longer than %d bytes", maxQuery)
	}
	params, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return q, errors.New("query is malformed")
	}
	for key, values := range params {
		if key != nameParam && key != posParam {
			return q, fmt.Errorf("query parameter %q is unknown", key)
		}
		if len(values) != 1 {
			return q, fmt.Errorf("query parameter %q is given %d times", key, len(values))
		}
	}
	if q.name = params.Get(nameParam); q.name == "" {
		return q, fmt.Errorf("query parameter %q is missing", nameParam)
	}
	if q.pos, err = litestream.ParsePos(params.Get(posParam)); err != nil {
		return q, fmt.Errorf("query parameter %q: %w", posParam, err)
	}
	return q, nil
}

// formatPageSize returns the value of PageSizeHeader.
func formatPageSize(n int) string { return strconv.Itoa(n) }

// parsePageSize accepts the page sizes of SQLite in the form that
// formatPageSize writes.
func parsePageSize(s string) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || formatPageSize(n) != s || !isPageSize(n) {
		return 0, fmt.Errorf("page size %.20q: want a power of two from 512 to 65536", s)
	}
	return n, nil
}

func isPageSize(n int) bool { return n >= 512 && n <= 65536 && n&(n-1) == 0 }
